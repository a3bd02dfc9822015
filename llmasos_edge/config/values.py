"""The readers of single values: each takes what YAML gave, and returns it typed and in range, or raises WrongValue."""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from llmasos_edge.config.units import parse_duration, parse_size
from llmasos_edge.kernel.units import Bytes, Milliseconds, Priority

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
TEXT_LIMIT = 16 * 1024
CLASSES: Mapping[str, Priority] = {it.name.lower(): it for it in Priority}


class WrongValue(ValueError):
    """What a value must be, and is not: the text of the problem that its file gets."""


def described(value: object) -> str:
    """What a value is, in words for an error."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"{str(value).lower()} (quote it if it is meant as text)"
    if isinstance(value, (int, float)):
        return f"the number {str(value)[:40]} (quote it if it is meant as text)"
    if isinstance(value, str):
        return f'"{value[:40]}"'
    return "a list" if isinstance(value, list) else "a mapping"


def text(value: object) -> str:
    """Text that is not blank, at most 16 KiB long."""
    if not isinstance(value, str):
        raise WrongValue(f"expected text, not {described(value)}")
    if not value.strip():
        raise WrongValue("must not be blank")
    if len(value) > TEXT_LIMIT:
        raise WrongValue(f"longer than {TEXT_LIMIT} characters")
    return value


def name(value: object) -> str:
    """A name that can be a topic level: letters, digits, dot, underscore and dash, 1 to 64 of them."""
    if not NAME.fullmatch(text(value)):
        raise WrongValue(f"{described(value)} is no name: 1 to 64 letters, digits, dots, underscores or dashes")
    return str(value)


def flag(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise WrongValue(f"expected true or false, not {described(value)}")
    return value


def integer(low: int, high: int) -> Callable[[object], int]:
    """A whole number within bounds."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise WrongValue(f"expected a whole number, not {described(value)}")
        return _within(value, low, high)

    return read


def number(low: float, high: float) -> Callable[[object], float]:
    """A number within bounds."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise WrongValue(f"expected a number, not {described(value)}")
        return float(_within(value, low, high))

    return read


N = TypeVar("N", int, float)


def _within(value: N, low: N, high: N) -> N:
    if not low <= value <= high:
        raise WrongValue(f"{value} is out of range: {low} to {high}")
    return value


def size(value: object) -> Bytes:
    """A size with its unit, more than nothing."""
    parsed = parse_size(_with_unit(value, "512MiB"))
    if parsed <= 0:
        raise WrongValue("must be more than nothing")
    return parsed


def duration(value: object) -> Milliseconds:
    """A duration with its unit, more than nothing."""
    parsed = parse_duration(_with_unit(value, "10m"))
    if parsed <= 0:
        raise WrongValue("must be more than nothing")
    return parsed


def _with_unit(value: object, example: str) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise WrongValue(f"{value} has no unit: write it like {example}")
    return text(value)


def one_of(choices: Mapping[str, T]) -> Callable[[object], T]:
    """One of the named choices."""

    def read(value: object) -> T:
        if not isinstance(value, str) or value not in choices:
            raise WrongValue(f"{described(value)} is not one of: {', '.join(choices)}")
        return choices[value]

    return read


context = integer(64, 2**20)  # tokens of the longest single task
sequences = integer(1, 256)  # llama.cpp's memory operations know sequence ids up to 255


def priority(value: object) -> Priority:
    """A priority class by its name."""
    return one_of(CLASSES)(value)
