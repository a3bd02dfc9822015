"""Tests of the file of keys: whose a key is, and which files are refused."""

from hashlib import sha256
from pathlib import Path

import pytest

from llmasos_edge.errors import ConfigError
from llmasos_edge.services.keys import read_keys

KEY = "0123456789abcdef"


def write(folder: Path, text: str, mode: int = 0o640) -> Path:
    file = folder / "http.keys"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_a_key_tells_its_client(tmp_path: Path) -> None:
    """Written as it is, or as its hash; a client may have two."""
    hashed = sha256(b"another key of 21 chars").hexdigest()
    keys = read_keys(write(tmp_path, f"# ours\n\npanel {KEY}\n panel\tsha256:{hashed}\nlamp {KEY}x\n"), {})
    assert len(keys) == 3
    assert [keys.client(key) for key in (KEY, "another key of 21 chars", KEY + "x")] == ["panel", "panel", "lamp"]
    assert [keys.client(key) for key in ("", "x", f"sha256:{hashed}", hashed)] == [None] * 4


def test_a_credential_comes_before_the_file(tmp_path: Path) -> None:
    """systemd hands it over."""
    handed = tmp_path / "credentials"
    handed.mkdir()
    write(handed, f"ops {KEY}\n", 0o400)
    file = write(tmp_path, f"panel {KEY}\n")
    assert read_keys(file, {"CREDENTIALS_DIRECTORY": str(handed)}).client(KEY) == "ops"
    assert read_keys(file, {}).client(KEY) == "panel"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no key in it"),
        ("panel\n", ":1: expected a client's name and its key"),
        (f"\npanel {KEY} more\n", ":2: expected"),
        (f"a/b {KEY}\n", ":1: expected"),
        (f"operator {KEY}\n", ":1: 'operator' is a name of the node's own"),
        (f"http {KEY}\n", ":1: 'http' is a name of the node's own"),
        ("panel short\n", ":1: a key is 16 to 256"),
        ("panel sha256:0123\n", ":1: a key is 16 to 256"),
        (f"panel {KEY}\nlamp {KEY}\n", ":2: this key is there twice"),
        ("panel \xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff\xfe\n", ":1: a key is 16 to 256"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """With its line, and without the key."""
    with pytest.raises(ConfigError, match=r"http\.keys_file: .*http\.keys") as caught:
        read_keys(write(tmp_path, text), {})
    assert words in caught.value.message
    assert KEY not in caught.value.message


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o641, 0o602])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    """To read it is to be any client, to write it too."""
    with pytest.raises(ConfigError, match=f"others may use it .mode {mode:04o}.: chmod 0640"):
        read_keys(write(tmp_path, f"panel {KEY}\n", mode), {})


def test_files_that_can_not_be_read_are_named(tmp_path: Path) -> None:
    """Not there, or no text."""
    with pytest.raises(ConfigError, match="No such file"):
        read_keys(tmp_path / "nowhere", {})
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    (tmp_path / "binary").chmod(0o600)
    with pytest.raises(ConfigError, match="not a text file"):
        read_keys(tmp_path / "binary", {})
