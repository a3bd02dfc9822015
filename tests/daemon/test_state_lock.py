"""Tests of the state directory's lock."""

import os
from pathlib import Path

import pytest

from llmasos_edge.daemon.state_lock import StateLock
from llmasos_edge.errors import ConfigError


def test_a_second_owner_is_told_the_first_ones_pid(tmp_path: Path) -> None:
    """Until the first lets go; a file that an earlier, longer pid left is overwritten."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "lock").write_text("123456789012345\n")
    lock = StateLock(state)
    with pytest.raises(ConfigError, match=rf"pid {os.getpid()}\)"):
        StateLock(state)
    lock.release()
    StateLock(state).release()


def test_a_directory_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    """A file is in the way."""
    (tmp_path / "state").touch()
    with pytest.raises(ConfigError, match="can't be used"):
        StateLock(tmp_path / "state")
