"""A regular expression of a JSON schema as a piece of a GBNF grammar: the text between a JSON string's quotes."""

import json
import re
from collections.abc import Iterable
from typing import Final

from llmasos_edge.errors import BadRequest

Ranges = list[tuple[int, int]]  # code points, both ends included

ANY: Final = "char"  # the rule for one character of a JSON string, escaped or not
LAST: Final = 0x10FFFF
SETS: Final[dict[str, Ranges]] = {
    "d": [(0x30, 0x39)],
    "w": [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    "s": [(0x09, 0x0D), (0x20, 0x20)],
}
CONTROLS: Final = {"n": 0x0A, "t": 0x09, "r": 0x0D, "f": 0x0C, "v": 0x0B}
BARRED: Final[Ranges] = [(0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F), (0xD800, 0xDFFF)]
ESCAPED: Final = (0x22, 0x5C, 0x0A, 0x09, 0x0D)  # of those, what may stand in a string, behind a backslash
TOKEN: Final = re.compile(
    r"""\\x[0-9a-fA-F]{2} | \\u[0-9a-fA-F]{4} | \\. | \[\^?\]?(?:\\.|[^\]\\])*\] | \(\?: | \(\? | [()|.^$]
    | (?:[*+?]|\{(?:\d+,?\d*|,\d+)\})[?+]? | .""",
    re.VERBOSE | re.DOTALL,
)
MEMBER: Final = re.compile(r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|.", re.DOTALL)


def pattern_rule(pattern: str, path: str) -> str:
    """The GBNF for strings that match. Raises BadRequest for what a grammar can't say: look-around, back-references."""
    tokens = TOKEN.findall(pattern)
    begins, ends = tokens[:1] == ["^"], tokens[-1:] == ["$"]
    inner = tokens[1 if begins else 0 : len(tokens) - ends]
    depth, parts = 0, []
    for token in inner:
        depth += token.startswith("(") - (token == ")")
        if token == "|" and depth == 0 and (begins or ends):
            raise BadRequest(f"{path}: put the alternatives between ^ and $ in parentheses")
        parts.append(_piece(token, path))
    whole = f"( {' '.join(parts)} )" if parts else '""'
    return f"{'' if begins else f'{ANY}* '}{whole}{'' if ends else f' {ANY}*'}"


def literal(text: str) -> str:
    """A GBNF literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def _piece(token: str, path: str) -> str:
    if token in ("^", "$"):
        raise BadRequest(f"{path}: {token} stands only at an end")
    if token == "(?" or (token[-1] == "+" and len(token) > 1 and token[0] in "*+?{"):
        raise BadRequest(f"{path}: no grammar can be made of {token!r}")
    if token in ("(", ")", "|"):
        return token
    if token == "(?:":
        return "("
    if token == ".":
        return ANY
    if token[0] in "*+?":
        return token[0]
    if token[0] == "{" and len(token) > 1:
        counts = token[1 : token.index("}")]
        return "{0" + counts + "}" if counts.startswith(",") else "{" + counts + "}"
    if token[0] == "[" and len(token) > 1:
        return _class_rule(_class_ranges(token, path), path)
    return _class_rule(_ranges(token, path), path)


def _ranges(token: str, path: str) -> Ranges:
    """What one character or escape stands for."""
    if len(token) == 1:
        return [(ord(token), ord(token))]
    kind = token[1]
    if kind in "xu" and len(token) > 2:
        return [(int("0x" + token[2:], 0),) * 2]
    if kind.lower() in SETS:
        found = SETS[kind.lower()]
        return found if kind.islower() else _without([(0, LAST)], found)
    if kind in CONTROLS:
        return [(CONTROLS[kind],) * 2]
    if kind.isalnum():
        raise BadRequest(f"{path}: no grammar can be made of {token!r}")
    return [(ord(kind), ord(kind))]


def _class_ranges(token: str, path: str) -> Ranges:
    """What a bracketed class stands for."""
    negated = token.startswith("[^")
    members = MEMBER.findall(token[2 if negated else 1 : -1])
    found: Ranges = []
    at = 0
    while at < len(members):
        first = _ranges(members[at], path)
        if members[at + 1 : at + 2] == ["-"] and at + 2 < len(members):
            found.append((first[0][0], _ranges(members[at + 2], path)[-1][1]))
            at += 3
        else:
            found += first
            at += 1
    return _without([(0, LAST)], found) if negated else found


def _without(ranges: Iterable[tuple[int, int]], removed: Ranges) -> Ranges:
    left = list(ranges)
    for low, high in removed:
        cut = [(a, min(b, low - 1)) for a, b in left if a < low] + [(max(a, high + 1), b) for a, b in left if b > high]
        left = [(a, b) for a, b in cut if a <= b]
    return sorted(left)


def _class_rule(ranges: Ranges, path: str) -> str:
    """Plain characters in brackets, and those that JSON writes behind a backslash as literals."""
    plain = _without(ranges, BARRED)
    escaped = [literal(json.dumps(chr(c))[1:-1]) for c in ESCAPED if any(a <= c <= b for a, b in ranges)]
    options = [f"[{''.join(_member(a, b) for a, b in plain)}]"] if plain else []
    options += escaped
    if not options:
        raise BadRequest(f"{path}: a part of it matches no character that JSON strings may hold")
    return options[0] if len(options) == 1 else f"( {' | '.join(options)} )"


def _member(low: int, high: int) -> str:
    return f"\\U{low:08X}" if low == high else f"\\U{low:08X}-\\U{high:08X}"
