"""Tests of the catalogue: the one that ships is right, and a wrong one is named."""

from pathlib import Path

import pytest

from llmasos_edge.errors import ConfigError
from llmasos_edge.services.catalogue import DEFAULT_MODEL, catalogue, read_catalogue

ENTRY = """
- name: tiny
  file: tiny.gguf
  source: file:/models/tiny.gguf
  sha256: {sha}
  size: 10
  licence: MIT
  context: 128
"""


def test_default_model_is_shipped() -> None:
    """The default model is in the catalogue, with its wheel's hash and an open licence."""
    entry = catalogue()[DEFAULT_MODEL]
    assert entry.archive is not None
    assert (entry.licence, entry.context) == ("Apache-2.0", 8192)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (ENTRY.format(sha="a" * 64) + "  colour: red\n", "colour"),
        (ENTRY.format(sha="abc"), "sha256"),
        (ENTRY.format(sha="a" * 64).replace("tiny.gguf\n  source", "../tiny.gguf\n  source"), "file"),
        (ENTRY.format(sha="a" * 64).replace("file:/models", "pypi:package==1"), "archive"),
        (ENTRY.format(sha="a" * 64).replace("file:/models", "gopher:"), "source"),
        ("- [", "expected"),
    ],
    ids=["unknown key", "hash", "path", "wheel", "source", "yaml"],
)
def test_a_wrong_entry_is_named(tmp_path: Path, text: str, named: str) -> None:
    """A catalogue that breaks its form is refused with its path and the key."""
    path = tmp_path / "catalogue.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"catalogue.yaml.*(?s:.*){named}"):
        read_catalogue(path)


def test_a_right_entry_is_read(tmp_path: Path) -> None:
    """A catalogue of one's own is read by name."""
    path = tmp_path / "catalogue.yaml"
    path.write_text(ENTRY.format(sha="a" * 64))
    assert read_catalogue(path)["tiny"].size == 10
