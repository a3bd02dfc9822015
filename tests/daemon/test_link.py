"""Tests of the link to the broker: where its password comes from."""

from pathlib import Path

import pytest

from llmasos_edge.daemon.link import read_password
from llmasos_edge.errors import ConfigError


def test_a_credential_comes_before_the_file(tmp_path: Path) -> None:
    """systemd hands it over in a folder of its own; without one of that name, the file counts."""
    file, folder = tmp_path / "mqtt.password", tmp_path / "credentials"
    folder.mkdir()
    file.write_text("from the file\n")
    environment = {"CREDENTIALS_DIRECTORY": str(folder)}
    assert read_password(file, environment) == "from the file"
    (folder / "mqtt.password").write_text("handed over\n")
    assert read_password(file, environment) == "handed over"
    assert read_password(file, {}) == "from the file"
    file.unlink()
    assert read_password(file, environment) == "handed over"


def test_a_password_that_is_nowhere_is_named(tmp_path: Path) -> None:
    """The key and the file."""
    with pytest.raises(ConfigError, match=r"mqtt\.password_file: .*nowhere: No such file"):
        read_password(tmp_path / "nowhere", {})
