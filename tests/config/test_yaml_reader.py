"""The tests of the strict YAML reader."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.config.yaml_reader import DEPTH_LIMIT, FILE_LIMIT, read_yaml
from llmasos_edge.errors import ConfigError


def write(folder: Path, text: str | bytes) -> Path:
    """A file with that content."""
    file = folder / "a.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def refusal(folder: Path, text: str | bytes) -> str:
    """The message of the ConfigError that the text earns."""
    with pytest.raises(ConfigError) as caught:
        read_yaml(write(folder, text)).finish()
    return caught.value.message


def test_data_and_lines(tmp_path: Path) -> None:
    """The data is plain, and every key knows its line."""
    document = read_yaml(write(tmp_path, "a: 1\nb:\n  - {c: x}\n  - yes\n"))
    assert document.data == {"a": 1, "b": [{"c": "x"}, True]}
    assert document.lines[("b", 0, "c")] == 3
    assert document.lines[("b",)] == 2


def test_duplicate_keys_name_both_lines(tmp_path: Path) -> None:
    """A key that stands twice is an error that names both places."""
    assert refusal(tmp_path, "a: 1\nb: 2\na: 3\n") == f"{tmp_path}/a.yaml:3: a: duplicate key (first on line 1)"


def test_all_problems_in_order(tmp_path: Path) -> None:
    """Several problems come together, in the order of the file."""
    message = refusal(tmp_path, "a: {x: 1, x: 2}\nb: .nan\n1: x\nd: 2020-01-01\n")
    assert [row.split(":")[1] for row in message.splitlines()] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1\n", ":2: not YAML"),
        ("a: b: c\n", ":1: not YAML"),
        ("a: &x 1\nb: *x\n", ":2: aliases"),
        ("a: 1\n---\nb: 2\n", ":2: not YAML"),
        ("a: !!python/object:os.system x\n", "put it in quotes"),
        ("a: \x01\n", "not YAML"),
        ("<<: {a: 1}\n", "no text key"),
        ("? [a]\n: 1\n", "this is no text key"),
        ("[" * (DEPTH_LIMIT + 1), ":1: nested deeper"),
        (b"a: \xff\n", "not UTF-8 (byte 3)"),
        ("a: " + "9" * 5000, "put it in quotes"),
        ("# " + "x" * FILE_LIMIT, "larger than 1024 KiB"),
    ],
)
def test_refusals(tmp_path: Path, text: str | bytes, says: str) -> None:
    """What is not strict YAML is refused by name, and with its line."""
    assert says in refusal(tmp_path, text)


def test_a_merge_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    """Aliases of aliases are refused at the first."""
    rows = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert ":2: aliases" in refusal(tmp_path, "\n".join(rows))


def test_a_megabyte_of_brackets_does_not_overflow(tmp_path: Path) -> None:
    """Depth is refused while reading, not by the stack."""
    assert "nested deeper" in refusal(tmp_path, "[" * (FILE_LIMIT - 1))


def test_what_is_not_there(tmp_path: Path) -> None:
    """A missing file and a folder are named."""
    with pytest.raises(ConfigError, match=r"none\.yaml: can't be read: No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        read_yaml(tmp_path)


def test_an_empty_file_has_no_data(tmp_path: Path) -> None:
    """An empty file reads as None."""
    assert read_yaml(write(tmp_path, "")).data is None


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    """No file makes anything but a document or a ConfigError."""
    with contextlib.suppress(ConfigError):
        read_yaml(write(tmp_path_factory.getbasetemp(), raw)).finish()
