"""Answer formats: a grammar for the sampler, and the check of the finished answer against the schema."""

from typing import Any, Final

import msgspec

from llmasos_edge.engine.schema_grammar import RULES, schema_grammar
from llmasos_edge.errors import BadRequest, EngineFailed, LLMasOSError

JSON_GRAMMAR: Final = f"root ::= object{RULES}"


def grammar_of(form: str | dict[str, Any] | None) -> str | None:
    """GBNF for "json" or a JSON schema. Raises BadRequest for a schema that has no grammar."""
    if form is None:
        return None
    if isinstance(form, str):
        return JSON_GRAMMAR
    try:
        return schema_grammar(form)
    except (TypeError, AttributeError, KeyError, ValueError, RecursionError) as error:
        raise BadRequest(f"format: not a JSON schema: {error!r}") from error


def parse_answer(text: str, form: str | dict[str, Any]) -> tuple[object, LLMasOSError | None]:
    """The JSON value of a finished answer, or why it is none: a grammar ignores bounds such as `maximum`."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        return None, EngineFailed(f"the answer is not JSON: {error}", details={"text": text})
    if isinstance(form, str):
        return value, None
    from jsonschema import Draft202012Validator, SchemaError  # noqa: PLC0415 - 8 MB, and only for schemas
    from referencing import Registry  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    try:
        registry: Registry[Any] = Registry()  # an empty one: nothing is fetched
        wrong = next(iter(Draft202012Validator(form, registry=registry).iter_errors(value)), None)
    except (SchemaError, Unresolvable, TypeError, ValueError) as error:
        return None, EngineFailed(f"the schema can't be checked: {error}", details={"text": text})
    if wrong is not None:
        why = f"the answer breaks its schema at {wrong.json_path}: {wrong.message}"
        return None, EngineFailed(why, details={"text": text})
    return value, None
