"""The tests of answers: what is published, and what is refused."""

import pytest

from llmasos_edge.apps.answer import ANSWER_LIMIT, AnswerFormat
from llmasos_edge.errors import EngineFailed

SCHEMA = {"type": "object", "properties": {"instruction": {"type": "string"}}, "required": ["instruction"]}


def test_a_valid_answer_is_published_as_it_is() -> None:
    """The object of the schema, and nothing else, is published."""
    assert AnswerFormat.read(SCHEMA).payload(' {"instruction" : "Löschen" } ') == '{"instruction": "Löschen"}'.encode()
    assert AnswerFormat("json").payload('{"a": [1]}') == b'{"a": [1]}'
    assert AnswerFormat(None).payload(" Leave.\n") == b"Leave."


@pytest.mark.parametrize(
    ("wire", "text", "says"),
    [
        (SCHEMA, '{"instruction": 7}', "$.instruction: 7 is not of type 'string'"),
        (SCHEMA, "{}", "'instruction' is a required property"),
        (SCHEMA, '{"instruction": "Lea', "format"),
        (SCHEMA, "", "format"),
        (SCHEMA, "[" * 100_000, "nested too deeply"),
        ({"$ref": "#"}, "{}", "nested too deeply"),
        ({}, '{"a": NaN}', "format"),
        ("json", "[1]", "must be a JSON object"),
        (None, "  ", "must be text that is not blank"),
        (None, "x" * (ANSWER_LIMIT + 1), "longer than"),
    ],
)
def test_an_answer_without_the_format_is_an_engine_failure(
    wire: str | dict[str, object] | None, text: str, says: str
) -> None:
    """What does not have the format is named, and not published."""
    with pytest.raises(EngineFailed) as caught:
        AnswerFormat(wire).payload(text)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        ("text", "a JSON schema"),
        ([], "a JSON schema"),
        ({"$ref": "https://example.org/schema"}, "local reference"),
        ({"type": "strnig"}, "type"),
        ({"type": "string", "maxLength": 100_000}, "maxLength"),
    ],
)
def test_what_is_no_format(wire: object, says: str) -> None:
    """A schema that the engine would not take is refused when the app is read."""
    with pytest.raises(ValueError, match=says):
        AnswerFormat.read(wire)
