"""The limits on a JSON schema that a caller sends as `format`: a larger one can crash the native grammar compiler."""

import re
from collections.abc import Iterator
from enum import Enum

import msgspec

from llmasos_edge.errors import BadRequest

MAX_BYTES = 16 * 1024
MAX_DEPTH = 8  # schemas within schemas
MAX_NODES = 512  # objects, lists, and members of lists
MAX_PATTERN = 200  # characters
MAX_REPEATS = 4096  # of all counted repetitions of one pattern, multiplied
CAPS = {"maxLength": 4096, "minLength": 2000, "maxItems": 256, "minItems": 256}  # 2000: what a grammar can count to
RANGES = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minimum", "maximum"))
LARGEST_BOUND = 10**15
TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
NAME_KEYS = ("properties", "patternProperties", "$defs", "definitions")
DATA_KEYS = ("enum", "const", "default", "examples")
_COUNTS = re.compile(r"\{(\d*)(?:,(\d*))?\}")


class Kind(Enum):
    """What an object inside a schema is."""

    SCHEMA = "a schema: its keys are keywords"
    NAMES = "schemas by name: its keys are the caller's"
    DATA = "a value that only stands in a schema"


def check_schema(schema: object, path: str = "format") -> None:
    """Return if `schema` is one that the grammar compiler takes safely; else BadRequest with the path of the fault."""
    if not isinstance(schema, dict):
        raise BadRequest(f"{path}: a JSON schema is an object")
    for number, (at, value, depth, kind) in enumerate(_walk(schema, path), start=1):
        # Each schema within a schema is two containers deep: the keyword's (`properties`), and its own.
        if depth > 2 * MAX_DEPTH:
            raise BadRequest(f"{at}: a schema is at most {MAX_DEPTH} levels deep")
        if number > MAX_NODES:
            raise BadRequest(f"{at}: a schema has at most {MAX_NODES} parts, and this is one more")
        if isinstance(value, dict) and kind is not Kind.DATA:
            _check_keys(value, at, schema, kind)
    if len(msgspec.json.encode(schema)) > MAX_BYTES:
        raise BadRequest(f"{path}: a schema has at most {MAX_BYTES} bytes")


def _walk(root: object, path: str) -> Iterator[tuple[str, object, int, Kind]]:
    """(path, value, depth, kind) of every object and list, and of every member of a list; without recursion."""
    waiting = [(path, root, 1, Kind.SCHEMA)]
    while waiting:
        at, value, depth, kind = waiting.pop()
        yield at, value, depth, kind
        if isinstance(value, dict):
            inner = [(f"{at}.{key}", part, _kind_of(key, kind)) for key, part in value.items()]
            inner = [part for part in inner if isinstance(part[1], dict | list)]
        elif isinstance(value, list):
            inner = [(f"{at}[{number}]", part, kind) for number, part in enumerate(value)]
        else:
            continue
        waiting.extend((where, part, depth + 1, what) for where, part, what in reversed(inner))


def _kind_of(key: str, parent: Kind) -> Kind:
    """What the value of `key` is, in an object of the kind `parent`."""
    if parent is Kind.SCHEMA:
        return Kind.NAMES if key in NAME_KEYS else Kind.DATA if key in DATA_KEYS else Kind.SCHEMA
    return Kind.SCHEMA if parent is Kind.NAMES else Kind.DATA


def _check_keys(value: dict[str, object], at: str, root: dict[str, object], kind: Kind) -> None:
    for key, part in value.items():
        if kind is Kind.NAMES:
            fault = None if isinstance(part, dict | bool) else "must be a schema"
        else:
            fault = _fault(key, part, root)
        if fault:
            raise BadRequest(f"{at}.{key}: {fault}")
    for low, high in RANGES if kind is Kind.SCHEMA else ():
        least, most = value.get(low), value.get(high)
        if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
            raise BadRequest(f"{at}.{low}: {least} is more than `{high}`, {most}: no answer can be both")


def _fault(key: str, value: object, root: dict[str, object]) -> str | None:
    """What is wrong with one keyword of a schema, or None."""
    good, wanted = True, ""
    match key:
        case "maxLength" | "minLength" | "maxItems" | "minItems":
            good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= CAPS[key]
            wanted = f"a whole number from 0 to {CAPS[key]}"
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
            good = isinstance(value, int | float) and abs(value) <= LARGEST_BOUND
            wanted = f"a number no further from 0 than {LARGEST_BOUND}"
        case "type":
            names = value if isinstance(value, list) else [value]
            good = bool(names) and all(isinstance(name, str) and name in TYPES for name in names)
            wanted = f"one of {', '.join(sorted(TYPES))}, or a list of them"
        case "required":
            good = isinstance(value, list) and all(isinstance(name, str) for name in value)
            wanted = "a list of names"
        case "properties" | "$defs" | "definitions" | "patternProperties":
            good, wanted = isinstance(value, dict), "an object of schemas"
        case "enum" | "anyOf" | "oneOf" | "allOf" | "prefixItems":
            good, wanted = isinstance(value, list) and bool(value), "a list with at least one member"
        case "pattern":
            return _pattern_fault(value)
        case "$ref":
            return _reference_fault(value, root)
        case _:
            pass
    return None if good else f"must be {wanted}"


def _pattern_fault(pattern: object) -> str | None:
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        return f"must be a regular expression of at most {MAX_PATTERN} characters"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"is no regular expression: {error}"
    repeats = 1
    for least, most in _COUNTS.findall(pattern):
        repeats *= max(int(least or 0), int(most or 0), 1)
    return f"repeats more than {MAX_REPEATS} times in all" if repeats > MAX_REPEATS else None


def _reference_fault(reference: object, root: dict[str, object]) -> str | None:
    """A reference must be local, exist, and not lead back to itself without a schema in between."""
    seen = set()
    while True:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            return "must be a local reference (#/$defs/...)"
        if reference in seen:
            return "refers to itself"
        seen.add(reference)
        target: object = root
        for part in reference.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or name not in target:
                return f"refers to {reference!r}, which is not there"
            target = target[name]
        if not isinstance(target, dict):
            return f"refers to {reference!r}, which is no schema"
        if "$ref" not in target:
            return None
        reference = target["$ref"]
