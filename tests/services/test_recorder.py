"""Tests of the recorder: a file that can be read at any moment, is bounded, and never holds anybody up."""

import logging
from pathlib import Path

import pytest
from msgspec.structs import replace

from llmasos_edge.errors import ConfigError
from llmasos_edge.services import recorder
from llmasos_edge.services.recorder import Recorder
from llmasos_edge.services.workload import read
from tests.services.test_workload import EARLY, HEADER, LATE


def test_the_header_is_written_anew_in_its_place(tmp_path: Path) -> None:
    """Tasks follow behind it, whenever it comes."""
    file = tmp_path / "w"
    made = Recorder(file)
    made.start()
    for item in (EARLY, HEADER, LATE, replace(HEADER, made_by="the last")):
        made.put(item)
    made.stop()
    assert read(file) == (replace(HEADER, made_by="the last"), [EARLY, LATE])
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_recording_before_is_kept(tmp_path: Path) -> None:
    """Under another name, once."""
    for number in range(3):
        made = Recorder(tmp_path / "w")
        made.start()
        made.put(replace(HEADER, made_by=f"start {number}"))
        made.stop()
    assert read(tmp_path / "w.old").header.made_by == "start 1"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["w", "w.old"]


def test_it_never_grows_beyond_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes after that is not recorded, and the log says so once."""
    monkeypatch.setattr(recorder, "MOST_BYTES", recorder.HEAD_BYTES + 300)
    file = tmp_path / "w"
    made = Recorder(file)
    made.start()
    made.put(HEADER)
    for _ in range(50):
        made.put(EARLY)
    made.stop()
    assert 1 <= len(read(file).arrivals) < 5
    assert file.stat().st_size <= recorder.MOST_BYTES
    assert sum("no more tasks are recorded" in each.message for each in caplog.records) == 1


def test_a_slow_disk_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many that wait, tasks are left out."""
    monkeypatch.setattr(recorder, "WAITING", 3)
    made = Recorder(tmp_path / "w")
    for _ in range(10):
        made.put(EARLY)
    made.start()
    made.put(HEADER)
    made.stop()
    assert len(read(tmp_path / "w").arrivals) <= 3


def test_a_disk_that_fails_ends_the_recording_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells; what comes is taken and thrown away, so that nobody waits for it."""
    monkeypatch.setattr(recorder, "WAITING", 2)
    made = Recorder(tmp_path / "w")
    made.start()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", fail)
    with caplog.at_level(logging.ERROR):
        for _ in range(10):
            made.put(EARLY)
        made.stop()
    assert "nothing more is recorded: No space left on device" in caplog.text


def test_a_folder_that_is_not_there_is_a_mistake_of_the_node_file(tmp_path: Path) -> None:
    """Told at the start, with the key."""
    with pytest.raises(ConfigError, match="scheduler.record: .*No such file"):
        Recorder(tmp_path / "x" / "w").start()
