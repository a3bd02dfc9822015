"""Tests of the swap file when something fails, and of what it believes after that."""

import contextlib
import ctypes
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.swap_load import MODEL, damaged, record
from llmasos_edge.errors import StoreError
from llmasos_edge.kernel.memory.backing import (
    MoveFailed,
    ReadDone,
    ReadFailed,
    StoredSegment,
    SwapEvent,
    WriteFailed,
    Written,
)
from llmasos_edge.kernel.memory.extent import PAGE, Move
from llmasos_edge.kernel.units import Bytes, SegmentId
from llmasos_edge.services.swap_index import SwapIndex
from tests.services.swap_rig import PATIENCE_S, SwapRig, gated, numbers, pages, write

# --- when something fails


@pytest.mark.parametrize("step", ["write", "sync"])
def test_a_write_that_fails_is_told_and_not_believed(rig: SwapRig, step: str) -> None:
    """It can be tried again, under the same number."""
    disk = gated(rig)
    disk.gate.set()
    disk.broken = step
    write(rig, 1, pages(0, 1), pages(0, 1))
    event = rig.event()
    assert isinstance(event, WriteFailed)
    assert (event.segment, step in event.why) == (1, True)
    disk.broken = ""
    write(rig, 1, pages(0, 1), pages(1, 1))
    assert rig.event() == Written(SegmentId(1))
    swap = rig.open()
    assert swap.load() == [StoredSegment(record(1, PAGE), pages(1, 1))]
    assert damaged(rig.folder, swap.load()) == []


def test_a_move_that_fails_leaves_the_segment_where_it_was(rig: SwapRig) -> None:
    """On the disk, and in the index."""
    disk = gated(rig)
    disk.gate.set()
    write(rig, 1, pages(0, 1), pages(4, 1))
    assert rig.event() == Written(SegmentId(1))
    disk.broken = "sync"
    assert rig.swap is not None
    rig.swap.move_stored(SegmentId(1), Move(pages(4, 1), pages(0, 1)))
    assert isinstance(rig.event(), MoveFailed)
    swap = rig.open()
    assert swap.load() == [StoredSegment(record(1, PAGE), pages(4, 1))]
    assert damaged(rig.folder, swap.load()) == []


@pytest.fixture
def doubtful(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Commits that are done, and fail all the same: the next so many. A power cut then shows what was on the disk."""
    real, left = SwapIndex.transaction, 0

    @contextlib.contextmanager
    def transaction(index: SwapIndex) -> Iterator[None]:
        nonlocal left
        with real(index):
            yield
        if left:
            left -= 1
            raise sqlite3.OperationalError("disk I/O error")

    def fail(times: int) -> None:
        nonlocal left
        left = times

    monkeypatch.setattr(SwapIndex, "transaction", transaction)
    return fail


def test_a_row_that_a_failed_commit_left_behind_is_taken_back(rig: SwapRig, doubtful: Callable[[int], None]) -> None:
    """Before its place is written again: else it would stand for another's bytes."""
    swap = rig.open()
    doubtful(1)
    write(rig, 1, pages(0, 1), pages(0, 1))
    assert rig.event() == WriteFailed(SegmentId(1), "disk I/O error")
    write(rig, 2, pages(1, 1), pages(0, 1))
    assert rig.event() == Written(SegmentId(2))
    swap = rig.open()
    assert numbers(swap.load()) == [2]
    assert damaged(rig.folder, swap.load()) == []


def test_a_pointer_that_a_failed_commit_left_behind_is_put_back(rig: SwapRig, doubtful: Callable[[int], None]) -> None:
    """Before the target is written again; the segment is where it was, and was never lost."""
    swap = rig.open()
    write(rig, 1, pages(0, 1), pages(4, 1))
    assert rig.event() == Written(SegmentId(1))
    doubtful(1)
    move = Move(pages(4, 1), pages(0, 1))
    swap.move_stored(SegmentId(1), move)
    assert rig.event() == MoveFailed(SegmentId(1), move, "disk I/O error")
    write(rig, 2, pages(1, 1), pages(0, 1))
    assert rig.event() == Written(SegmentId(2))
    swap = rig.open()
    assert [(each.record.segment, each.extent) for each in swap.load()] == [(2, pages(0, 1)), (1, pages(4, 1))]
    assert damaged(rig.folder, swap.load()) == []


def test_an_owner_that_fails_does_not_stop_it(rig: SwapRig, caplog: pytest.LogCaptureFixture) -> None:
    """The next event comes all the same."""
    swap = rig.open()
    real, told = rig.events.put, threading.Event()

    def deliver(event: SwapEvent) -> None:
        if not told.is_set():
            told.set()
            raise RuntimeError("a bug")
        real(event)

    swap._deliver = deliver
    for number in (1, 2):
        write(rig, number, pages(number, 1), pages(number, 1))
    assert rig.event() == Written(SegmentId(2))
    assert "owner failed" in caplog.text


def test_a_flush_is_bounded_and_a_stop_leaves_what_waits(rig: SwapRig) -> None:
    """A disk that hangs can't hold up the way down for longer; what was not written is not believed."""
    disk = gated(rig)
    swap = rig.swap
    assert swap is not None
    write(rig, 1, pages(0, 1), pages(0, 1))
    assert disk.writing.acquire(timeout=PATIENCE_S)
    swap.move_stored(SegmentId(9), Move(pages(9, 1), pages(8, 1)))
    write(rig, 2, pages(1, 1), pages(1, 1))
    assert not swap.flush(0.01)
    threading.Timer(0.05, disk.gate.set).start()
    swap = rig.open()
    assert numbers(swap.load()) == [1]
    assert swap.flush(PATIENCE_S)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=4m") == 0, os.strerror(ctypes.get_errno())
    yield folder
    assert libc.umount2(os.fsencode(folder), 2) == 0  # MNT_DETACH


def test_a_disk_without_room_is_told_at_the_start(small_disk: Path) -> None:
    """With both numbers and what to do; what was taken is given back, and a smaller file fits."""
    rig = SwapRig(small_disk / "swap", swap=2048)
    with pytest.raises(StoreError, match=r"disk is full: 8388608 bytes more .* make memory\.swap\.size smaller"):
        rig.open()
    assert (small_disk / "swap/segments").stat().st_blocks == 0
    rig.size = Bytes(2 << 20)
    rig.open()
    rig.close()


def test_a_disk_that_fills_up_fails_writes_until_there_is_room(small_disk: Path) -> None:
    """The data has its room since the start, the index has not. What was told Written is believed, and nothing else."""
    rig = SwapRig(small_disk / "swap", swap=512)
    swap = rig.open()
    write(rig, 1, pages(1, 1), pages(1, 1))
    assert rig.event() == Written(SegmentId(1))
    ballast = small_disk / "ballast"
    fill_up(ballast)
    events: list[SwapEvent] = []
    for number in range(2, 40):  # so many fit into what the index has already
        write(rig, number, pages(1, 1), pages(number, 1))
        events.append(rig.event())
    written = {event.segment for event in events if isinstance(event, Written)}
    failed = [event.why for event in events if isinstance(event, WriteFailed)]
    assert {"full" in why for why in failed} == {True}
    swap.forget([SegmentId(1)])
    assert not swap.flush(0.2)
    ballast.unlink()
    assert swap.flush(PATIENCE_S)
    write(rig, 50, pages(1, 1), pages(50, 1))
    assert rig.event() == Written(SegmentId(50))
    swap = rig.open()
    assert set(numbers(swap.load())) == written | {50}
    assert damaged(rig.folder, swap.load()) == []
    rig.close()


def fill_up(ballast: Path) -> None:
    """Until the disk has no room."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(PAGE))


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path, rig: SwapRig) -> None:
    """With the key to see to; so is a file system that can't be written."""
    (tmp_path / "file").write_text("")
    rig.folder = tmp_path / "file" / "swap"
    with pytest.raises(StoreError, match=r"Not a directory: see to memory\.swap\.path"):
        rig.open()
    rig.folder = Path("/proc/self")
    with pytest.raises(StoreError, match=r"see to memory\.swap\.path"):
        rig.open()


def test_two_nodes_can_not_share_one(rig: SwapRig) -> None:
    """The second is refused while the first has it."""
    rig.open()
    second = SwapRig(rig.folder)
    with pytest.raises(StoreError, match="another node uses it"):
        second.open()
    rig.stop()
    second.open()
    second.close()


# --- what is not believed


def test_a_flipped_byte_is_found_by_the_checksum(rig: SwapRig) -> None:
    """By whoever reads: here it comes as it is, and the others are untouched."""
    rig.open()
    for number in (1, 2):
        write(rig, number, pages(0, 2), pages(2 * number, 2))
        assert rig.event() == Written(SegmentId(number))
    rig.stop()
    with (rig.folder / "segments").open("r+b") as file:
        file.seek(2 * PAGE + 77)
        byte = file.read(1)
        file.seek(2 * PAGE + 77)
        file.write(bytes([byte[0] ^ 1]))
    swap = rig.open()
    assert damaged(rig.folder, swap.load()) == [1]
    swap.read(1, MODEL, pages(2, 2), pages(9, 2), Bytes(2 * PAGE))
    assert rig.event() == ReadDone(1)


def test_a_file_that_is_cut_off_fails_reads_alone(rig: SwapRig) -> None:
    """While it is open, reads beyond its end; at the next start what lay there is dropped, and there is room again."""
    swap = rig.open()
    for number in (1, 2):
        write(rig, number, pages(0, 2), pages(2 * number, 2))
        assert rig.event() == Written(SegmentId(number))
    os.truncate(rig.folder / "segments", 5 * PAGE)
    swap.read(1, MODEL, pages(4, 2), pages(9, 2), Bytes(2 * PAGE))
    event = rig.event()
    assert isinstance(event, ReadFailed)
    assert f"the swap file ends at {5 * PAGE}" in event.why
    swap.read(2, MODEL, pages(2, 2), pages(9, 2), Bytes(2 * PAGE))
    assert rig.event() == ReadDone(2)
    swap = rig.open()
    assert numbers(swap.load()) == [1]
    assert rig.reports == [("swap.dropped", {"segment": 2, "why": "it lies outside the swap file"})]
    assert (rig.folder / "segments").stat().st_size == rig.size
    assert numbers(rig.open().load()) == [1]
    assert rig.reports == []


def test_a_smaller_file_drops_what_lies_beyond_its_end(rig: SwapRig) -> None:
    """And a larger one again has room; what was dropped does not come back."""
    rig.open()
    for number in (1, 2):
        write(rig, number, pages(0, 2), pages(100 * number, 2))
        assert rig.event() == Written(SegmentId(number))
    rig.size = Bytes(150 * PAGE)
    assert numbers(rig.open(start=False).load()) == [1]
    rig.size = Bytes(256 * PAGE)
    assert numbers(rig.open().load()) == [1]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ('UPDATE segment SET "offset" = "offset" + 1 WHERE segment = 2', "size and place"),
        ('UPDATE segment SET "offset" = -4096 WHERE segment = 2', "outside"),
        ("UPDATE segment SET size = length + 1 WHERE segment = 2", "size and place"),
        ("UPDATE segment SET size = 0 WHERE segment = 2", "size and place"),
        ('UPDATE segment SET "end" = start WHERE segment = 2', "no tokens"),
        ("UPDATE segment SET checksum = 'x' WHERE segment = 2", "wrong type"),
        ("UPDATE segment SET client = x'00' WHERE segment = 2", "wrong type"),
    ],
)
def test_what_contradicts_itself_is_dropped(rig: SwapRig, change: str, why: str) -> None:
    """One segment, with an event; the others are kept."""
    _write_three(rig)
    rig.index(change)
    assert numbers(rig.open().load()) == [1, 3]
    ((kind, details),) = rig.reports
    assert (kind, details["segment"], why in str(details["why"])) == ("swap.dropped", 2, True)


def test_of_segments_that_overlap_none_is_believed(rig: SwapRig) -> None:
    """Nobody knows whose the bytes are."""
    _write_three(rig)
    rig.index('UPDATE segment SET "offset" = ? WHERE segment = 2', 9 * PAGE)
    assert numbers(rig.open().load()) == [1]
    assert sorted(str(details["segment"]) for _, details in rig.reports) == ["2", "3"]


def _write_three(rig: SwapRig) -> None:
    rig.open()
    for number in (1, 2, 3):
        write(rig, number, pages(0, 4), pages(4 * number - 4, 4))
        assert rig.event() == Written(SegmentId(number))
    rig.stop()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rig: (rig.folder / "index.db").write_bytes(b"not a database" * 400),
        lambda rig: rig.index("PRAGMA user_version=7"),
        lambda rig: rig.index("ALTER TABLE segment RENAME COLUMN size TO bytes"),
        lambda rig: rig.index("DROP TABLE segment"),
    ],
    ids=["no SQLite", "another version", "another table", "no table"],
)
def test_an_index_that_is_not_ours_is_put_aside(rig: SwapRig, spoil: object) -> None:
    """Its file is kept, with an event; the swap file is empty, and usable."""
    _write_three(rig)
    assert callable(spoil)
    spoil(rig)
    assert rig.open().load() == []
    ((kind, details),) = rig.reports
    assert kind == "swap.index_aside"
    assert Path(str(details["moved_to"])).exists()
    write(rig, 4, pages(0, 4), pages(0, 4))
    assert rig.event() == Written(SegmentId(4))
    assert numbers(rig.open().load()) == [4]


def test_only_the_owner_can_read_it(rig: SwapRig) -> None:
    """Conversations are in it."""
    rig.open()
    assert rig.folder.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in rig.folder.iterdir()} == {0o600}
