"""The sizes and durations that people write: `512MiB`, `2GiB`, `500ms`, `10m`, `7d`."""

import re

from llmasos_edge.kernel.units import Bytes, Milliseconds

SIZES = {
    "B": 1,
    "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
DURATIONS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

_AMOUNT = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,3}))? ?([A-Za-z]+)", re.ASCII)


def parse_size(text: str) -> Bytes:
    """The bytes that a size like `512MiB` or `1.5GiB` means (decimal units too: `512MB`). ValueError otherwise."""
    return Bytes(_scaled(text, SIZES, "a size needs a number and a unit, for example 512MiB or 2GiB"))


def parse_duration(text: str) -> Milliseconds:
    """The milliseconds that a duration like `5s` or `7d` means. ValueError otherwise."""
    return Milliseconds(_scaled(text, DURATIONS_MS, "a duration needs a number and a unit, for example 5s, 10m or 7d"))


def _scaled(text: str, units: dict[str, int], hint: str) -> int:
    found = _AMOUNT.fullmatch(text)
    if found is None or found[3] not in units:
        raise ValueError(f'"{text[:40]}": {hint} (units: {", ".join(units)})')
    unit = units[found[3]]
    return int(found[1]) * unit + round(float(f"0.{found[2] or 0}") * unit)
