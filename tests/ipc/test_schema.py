"""Tests of the limits on JSON schemas."""

from typing import Any

import pytest

from llmasos_edge.errors import BadRequest
from llmasos_edge.ipc.schema import check_schema


def nested(levels: int) -> dict[str, Any]:
    """A schema with `levels` schemas in one another."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels - 1):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"instruction": {"type": "string"}}, "required": ["instruction"]},
        {"type": ["string", "null"], "maxLength": 4096},
        {"type": "array", "items": {"enum": [1, "a", None]}, "maxItems": 256},
        {"type": "object", "properties": {"properties": {"type": "string"}, "maxLength": {"type": "integer"}}},
        {"$defs": {"a/b": {"type": "string"}}, "$ref": "#/$defs/a~1b"},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"const": {"maxLength": 100_000}},
        {"type": "string", "pattern": "^[a-z]{1,20}$"},
        {"type": "string", "minLength": 2000, "maxLength": 2000},
        {"enum": [{"minimum": 2, "maximum": 1}]},
        nested(8),
    ],
)
def test_schemas_within_the_limits_pass(schema: dict[str, Any]) -> None:
    """Whatever an app needs passes, names that look like keywords and recursive schemas included."""
    check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ([], "format:"),
        ({"properties": {"x": {"maxLength": 100_000}}}, "format.properties.x.maxLength:"),
        ({"properties": {"x": {"maxLength": True}}}, "format.properties.x.maxLength:"),
        ({"items": {"minItems": -1}}, "format.items.minItems:"),
        ({"minLength": 2001}, "format.minLength: must be a whole number from 0 to 2000"),
        ({"properties": {"x": {"minLength": 9, "maxLength": 3}}}, "format.properties.x.minLength: 9 is more than"),
        ({"minItems": 2, "maxItems": 1}, "format.minItems: 2 is more than"),
        ({"minimum": 1.5, "maximum": 1}, "format.minimum: 1.5 is more than"),
        ({"anyOf": [{"type": "string"}, {"maxItems": 257}]}, "format.anyOf[1].maxItems:"),
        ({"minimum": 10**30}, "format.minimum:"),
        ({"enum": []}, "format.enum:"),
        ({"enum": list(range(600))}, "format.enum[510]:"),
        ({"pattern": "a" * 201}, "format.pattern:"),
        ({"pattern": "("}, "format.pattern:"),
        ({"pattern": "((a{99}){99}){99}"}, "format.pattern:"),
        ({"pattern": "a{,99999}"}, "format.pattern:"),
        ({"type": "strin"}, "format.type:"),
        ({"type": 5}, "format.type:"),
        ({"required": "a"}, "format.required:"),
        ({"properties": []}, "format.properties:"),
        ({"properties": {"x": 5}}, "format.properties.x:"),
        ({"oneOf": {}}, "format.oneOf:"),
        ({"$ref": "https://example.org/schema"}, "format.$ref:"),
        ({"$ref": "#/$defs/missing"}, "format.$ref:"),
        ({"$ref": "#"}, "format.$ref:"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "format.$defs.a.$ref:"),
        ({"$defs": {"a": 5}, "$ref": "#/$defs/a"}, "format."),
        ({"description": "x" * 20_000}, "format:"),
        (nested(9), "format.properties.x"),
        (nested(100_000), "format.properties.x"),
    ],
)
def test_a_schema_beyond_a_limit_is_refused_with_its_path(schema: Any, path: str) -> None:
    """What would crash or stall the grammar compiler never reaches it, and the error tells where it stands."""
    with pytest.raises(BadRequest) as refused:
        check_schema(schema)
    assert refused.value.message.startswith(path)
