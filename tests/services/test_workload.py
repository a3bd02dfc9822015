"""Tests of the workload file: what is written can be read, and every mistake is told with its line."""

import re
from pathlib import Path

import msgspec
import pytest

from llmasos_edge.errors import ConfigError
from llmasos_edge.services.workload import (
    Arrival,
    Header,
    Machine,
    Model,
    Outcome,
    Rates,
    Settings,
    Workload,
    line,
    read,
    write,
)

MODEL = Model("m", 512, 1024, 0, 4, 1000, 1 << 20, False, 100, 2, Rates(10, 1, 1, 0.5, 0))
HEADER = Header(1, "a test", Machine(2, 1 << 30, 1 << 20, 0, (MODEL,)), Settings("priority", 200, 150, 5000, "cost"))
EARLY = Arrival(5, "lamp", "m", 40, 10, 64)
LATE = Arrival(9, "door", "m", 7, 0, 1, "critical", 3, "talk", "alarm", 5000, Outcome("ok", 80, 20, 30, 1))


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    """Tasks come back in the order of their arrival, with all that is known of them."""
    file = tmp_path / "w"
    write(file, Workload(HEADER, [LATE, EARLY]))
    assert read(file) == (HEADER, [EARLY, LATE])


def test_a_line_names_the_class_and_leaves_out_what_is_not_there() -> None:
    """So that a file of many tasks stays small, and can be read by people."""
    assert msgspec.json.decode(line(EARLY)) == {
        "arrival_ms": 5,
        "client": "lamp",
        "model": "m",
        "prompt": 40,
        "output": 10,
        "max_tokens": 64,
    }
    assert msgspec.json.decode(line(LATE))["class"] == "critical"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"client": "lamp"}', "w:3: Object missing required field `arrival_ms`"),
        (line(EARLY).replace(b"output", b"outptu"), "w:3: Object contains unknown field `outptu`"),
        (line(LATE).replace(b"critical", b"urgent"), "w:3: Invalid enum value 'urgent' - at `$.class`"),
        (line(EARLY).replace(b"40", b"-1"), "w:3: Expected `int` >= 1 - at `$.prompt`"),
        (line(EARLY).replace(b'"m"', b'"n"'), "w:3: `$.model`: the header has no 'n', only m"),
        (line(EARLY).replace(b"40", b"512"), "w:3: `$.prompt`: 512 tokens, and the context of m is 512"),
        (b"{]\n", "w:3: JSON is malformed"),
        (b'"' + b"x" * (1 << 17), "w:3: the line is longer"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: bytes, says: str) -> None:
    """File, line and field."""
    file = tmp_path / "w"
    file.write_bytes(line(HEADER) + b"\n" + text)
    with pytest.raises(ConfigError, match=re.escape(says)):
        read(file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "w:1: Input data was truncated"),
        (line(EARLY), "w:1: Object "),
        (line(HEADER).replace(b'"workload":1', b'"workload":2'), "w:1: Invalid enum value 2 - at `$.workload`"),
    ],
)
def test_the_first_line_must_be_a_header(tmp_path: Path, text: bytes, says: str) -> None:
    """Of this version."""
    file = tmp_path / "w"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=re.escape(says)):
        read(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Neither to be read, nor a folder to write into."""
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "w")
    with pytest.raises(ConfigError, match="No such file"):
        write(tmp_path / "x" / "w", Workload(HEADER, []))
