"""The answer of an app: its text checked against the app's format, and the bytes that are published for it."""

import json
from dataclasses import dataclass

from llmasos_edge.config.values import WrongValue
from llmasos_edge.errors import BadRequest, EngineFailed
from llmasos_edge.ipc.schema import check_schema

ANSWER_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What an answer must be: text (None), any JSON object ("json"), or what a JSON schema says (draft 2020-12)."""

    wire: str | dict[str, object] | None  # the `format` field of a request

    @classmethod
    def read(cls, value: object) -> "AnswerFormat":
        """The format that an app file names. ValueError where it is none, or more than the engine takes."""
        if value == "json":
            return cls("json")
        if not isinstance(value, dict):
            raise WrongValue('must be "json" or a JSON schema (a mapping)')
        try:
            check_schema(value)
        except BadRequest as error:
            raise WrongValue(error.message) from None
        return cls(value)

    def payload(self, text: str) -> bytes:
        """The publication for an answer's text. EngineFailed if the answer does not have this format, or is empty."""
        try:
            return self.checked(text if self.wire is None else json.loads(text))
        except RecursionError:
            raise EngineFailed("the answer is nested too deeply") from None
        except ValueError as error:
            raise EngineFailed(f"the answer does not have the app's format: {error}") from None

    def checked(self, value: object) -> bytes:
        """The bytes for a value that has this format. ValueError names what is wrong with it."""
        if self.wire is None:
            if not isinstance(value, str) or not value.strip():
                raise ValueError("must be text that is not blank")
            return _bounded(value.strip())
        if self.wire == "json" and not isinstance(value, dict):
            raise ValueError("must be a JSON object")
        if isinstance(self.wire, dict):
            _check_value(self.wire, value)
        return _bounded(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _bounded(text: str) -> bytes:
    raw = text.encode(errors="replace")
    if len(raw) > ANSWER_LIMIT:
        raise ValueError(f"longer than {ANSWER_LIMIT} bytes")
    return raw


def _check_value(schema: dict[str, object], value: object) -> None:
    """ValueError says where a value breaks a schema. The registry is empty, so nothing is ever fetched."""
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - with the first schema: a node without one saves 5 MB
    from referencing import Registry  # noqa: PLC0415

    try:
        error = next(Draft202012Validator(schema, registry=Registry()).iter_errors(value), None)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if error is not None:
        raise ValueError(f"{error.json_path}: {error.message[:200]}")
