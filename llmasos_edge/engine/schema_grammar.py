"""A JSON schema as a GBNF grammar: what an answer is held to while it is written. Bounds of numbers are not in it."""

import json
from typing import Any, Final

from llmasos_edge.engine.pattern import literal, pattern_rule
from llmasos_edge.errors import BadRequest

TYPES: Final = ("object", "array", "string", "number", "boolean", "null")
REPEATS_MAX: Final = 2000  # llama.cpp's own limit on one repetition
TOTAL_MAX: Final = 20_000  # of all repetitions: each is a rule in the sampler's memory
EMPTY: Final = '""'
HINTS: Final = {  # what a schema without `type` speaks of
    "object": ("properties", "required", "additionalProperties", "patternProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
# Whitespace is bounded, or a small model would go on with it for ever.
RULES: Final = r"""
ws ::= ( " " | "\n" " "{0,12} )?
char ::= [^"\\\x00-\x1F\x7F] | "\\" ( ["\\/bfnrt] | "u" [0-9a-fA-F]{4} )
string ::= "\"" char* "\""
integer ::= "-"? ( "0" | [1-9] [0-9]{0,15} )
number ::= integer ( "." [0-9]{1,16} )? ( [eE] [-+]? [0-9]{1,3} )?
boolean ::= "true" | "false"
null ::= "null"
value ::= object | array | string | number | boolean | null
member ::= string ws ":" ws value
object ::= "{" ws ( member ws ( "," ws member ws )* )? "}"
array ::= "[" ws ( value ws ( "," ws value ws )* )? "]"
day ::= [0-9]{4} "-" ( "0" [1-9] | "1" [0-2] ) "-" ( "0" [1-9] | [12] [0-9] | "3" [01] )
time ::= ( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9] ":" [0-5] [0-9] ( "." [0-9]{1,6} )? zone
zone ::= "Z" | [-+] [0-9]{2} ":" [0-9]{2}
hex ::= [0-9a-fA-F]
"""
FORMATS: Final = {
    "date": "day",
    "time": "time",
    "date-time": 'day "T" time',
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
}


def schema_grammar(schema: dict[str, Any]) -> str:
    """Properties come in the order given. Raises BadRequest, which names the place, for what no grammar can say."""
    return _Grammar(schema).text


class _Grammar:
    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._rules: list[str] = []
        self._references: dict[str, str] = {}
        self._repeats = 0
        root = self._value(schema, "format")
        self.text = f"root ::= {root}{RULES}{chr(10).join(self._rules)}\n"

    def _rule(self, expression: str) -> str:
        """A name for an expression."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name} ::= {expression}")
        return name

    def _value(self, schema: object, path: str) -> str:
        """The expression for a value that fits."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            raise BadRequest(f"{path}: no value fits {schema!r}")
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return _union([literal(json.dumps(value, ensure_ascii=False)) for value in values])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return _union([self._value(part, f"{path}.{key}[{n}]") for n, part in enumerate(schema[key])])
        if "allOf" in schema:
            return self._value(self._merged(schema, path), path)
        return _union([self._typed(kind, schema, path) for kind in _types(schema)])

    def _typed(self, kind: str, schema: dict[str, Any], path: str) -> str:
        match kind:
            case "object":
                return self._object(schema, path)
            case "array":
                return self._array(schema, path)
            case "string":
                return self._string(schema, path)
            case _:
                return kind

    def _reference(self, reference: str) -> str:
        """A rule of its own, so that a schema may hold itself."""
        if reference not in self._references:
            place = len(self._rules)
            self._rules.append("")
            self._references[reference] = f"r{place}"
            expression = self._value(self._target(reference), reference)
            self._rules[place] = f"r{place} ::= {expression}"
        return self._references[reference]

    def _target(self, reference: str) -> object:
        target: object = self._schema
        for part in reference.removeprefix("#").split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or name not in target:
                raise BadRequest(f"format.$ref: {reference!r} is not there")
            target = target[name]
        return target

    def _merged(self, schema: dict[str, Any], path: str) -> dict[str, Any]:
        """One schema for `allOf`: the properties of all its parts, and what else they say."""
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            while isinstance(part, dict) and "$ref" in part:
                part = self._target(part["$ref"])  # noqa: PLW2901 - follows the reference
            if not isinstance(part, dict):
                raise BadRequest(f"{path}.allOf: its parts must be schemas that are objects")
            properties = merged.get("properties", {}) | part.get("properties", {})
            required = [*merged.get("required", []), *part.get("required", [])]
            merged |= part | ({"properties": properties, "required": required} if properties else {})
        return merged

    def _object(self, schema: dict[str, Any], path: str) -> str:
        """Properties in their order, each optional one or not, then further ones if `additionalProperties` asks."""
        required, extra = schema.get("required", []), schema.get("additionalProperties")
        properties = schema.get("properties", {})
        properties = properties | {name: True for name in required if name not in properties}
        if not properties and extra in (None, True):
            return "object"
        more = extra is True or isinstance(extra, dict)
        other = f'string ws ":" ws {self._grouped(extra, f"{path}.additionalProperties")} ws' if more else ""
        rest = self._rule(f'( "," ws {other} )*') if more else EMPTY
        first = self._rule(f"( {other} {rest} )?") if more else EMPTY
        for name, part in reversed(properties.items()):
            value = self._grouped(part, f"{path}.properties.{name}")
            member = self._rule(f'{literal(json.dumps(name, ensure_ascii=False))} ws ":" ws {value} ws')
            needed = name in required
            first = self._rule(f"{member} {rest}" if needed else f"{member} {rest} | {first}")
            rest = self._rule(f'"," ws {member} {rest}' if needed else f'( "," ws {member} )? {rest}')
        return f'"{{" ws {first} "}}"'

    def _array(self, schema: dict[str, Any], path: str) -> str:
        head = [self._grouped(part, f"{path}.prefixItems[{n}]") for n, part in enumerate(schema.get("prefixItems", []))]
        if head:
            return '"[" ws ' + ' ws "," ws '.join(head) + ' ws "]"'
        item = self._rule(f"{self._grouped(schema.get('items', True), f'{path}.items')} ws")
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[" ws "]"'
        further = "" if most is None else max(most - 1, least - 1)
        items = f'{item} ( "," ws {item} ){self._times(max(least - 1, 0), further, path)}'
        return f'"[" ws {items} "]"' if least else f'"[" ws ( {items} )? "]"'

    def _string(self, schema: dict[str, Any], path: str) -> str:
        if "pattern" in schema:
            return rf'"\"" {pattern_rule(schema["pattern"], f"{path}.pattern")} "\""'
        form = schema.get("format")
        if isinstance(form, str) and form in FORMATS:
            return rf'"\"" {FORMATS[form]} "\""'
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if not least and most is None:
            return "string"
        return rf'"\"" char{self._times(least, "" if most is None else max(most, least), path)} "\""'

    def _times(self, least: int, most: int | str, path: str) -> str:
        """A repetition; more than llama.cpp can count is unbounded here, and checked in the finished answer."""
        if isinstance(most, int) and most > REPEATS_MAX:
            most = ""
        self._repeats += most if isinstance(most, int) else least
        if least > REPEATS_MAX or self._repeats > TOTAL_MAX:
            raise BadRequest(f"{path}: a grammar counts to {REPEATS_MAX}, and to {TOTAL_MAX} in all")
        return f"{{{least},{most}}}"

    def _grouped(self, schema: object, path: str) -> str:
        expression = self._value(schema, path)
        return f"( {expression} )" if "|" in expression else expression


def _union(options: list[str]) -> str:
    return " | ".join(options)


def _types(schema: dict[str, Any]) -> list[str]:
    kinds = schema.get("type")
    if kinds is None:
        hinted = [kind for kind, keys in HINTS.items() if any(key in schema for key in keys)]
        return hinted or list(TYPES)
    return list(kinds) if isinstance(kinds, list) else [kinds]
