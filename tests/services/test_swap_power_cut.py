"""Tests of power cuts: all that was written is recorded, and every moment of it is a moment at which the power goes.

A kill leaves the page cache whole; a power cut does not: of what was not synced, any page may be there or not. The
index is taken as SQLite left it at its last commit, or with part of what it was writing.
"""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from benchmarks.swap_load import SwapLoad, damaged
from llmasos_edge.kernel.memory.backing import StoredSegment, SwapEvent, WriteFailed, Written
from llmasos_edge.kernel.memory.extent import PAGE
from llmasos_edge.kernel.units import Bytes, SegmentId
from llmasos_edge.services.swap_disk import SwapDisk
from llmasos_edge.services.swap_index import SwapIndex
from tests.services.swap_rig import SwapRig

SWAP = 40  # pages: so few that every place is used again and again
SEGMENTS = 60
MOVES = 5
FILES = ("index.db", "index.db-wal")


@dataclass(frozen=True)
class Wrote:
    """Bytes that were handed to the system, at this offset."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class Synced:
    """All that was handed over before is on the disk."""


@dataclass(frozen=True)
class Committed:
    """The index's files."""

    files: tuple[bytes, ...]


@dataclass(frozen=True)
class Told:
    """What the kernel heard."""

    event: SwapEvent


@dataclass(frozen=True)
class Forgot:
    """What the kernel said that it no longer needs."""

    segment: SegmentId


Step = Wrote | Synced | Committed | Told | Forgot


class RecordingDisk(SwapDisk):
    """Notes what is written and synced."""

    def __init__(self, history: list[Step], path: Path) -> None:
        super().__init__(path)
        self._history = history

    def write(self, piece: memoryview, offset: int) -> None:
        self._history.append(Wrote(offset, bytes(piece)))
        super().write(piece, offset)

    def sync(self) -> None:
        super().sync()
        self._history.append(Synced())


@pytest.fixture(params=range(3))
def recorded(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """All that a workload did to the disk, in order."""
    history: list[Step] = []
    rig = SwapRig(tmp_path / "recorded", swap=SWAP)
    real = SwapIndex.transaction

    @contextlib.contextmanager
    def transaction(index: SwapIndex) -> Iterator[None]:
        with real(index):
            yield
        history.append(Committed(tuple((rig.folder / name).read_bytes() for name in FILES)))

    monkeypatch.setattr(SwapIndex, "transaction", transaction)
    swap = rig.open(disk=partial(RecordingDisk, history))
    history.insert(0, Committed(tuple((rig.folder / name).read_bytes() for name in FILES)))
    deliver = swap._deliver

    def tell(event: SwapEvent) -> None:
        history.append(Told(event))
        deliver(event)

    swap._deliver = tell
    load = SwapLoad(swap, rig.memory, (Bytes(256 * PAGE), rig.size), rig.events, random.Random(request.param))
    load.largest = 5 * PAGE
    load.on_forget = lambda segment: history.append(Forgot(segment))
    while load.number < SEGMENTS or load.moves < MOVES:
        load.step()
    while not load.idle:
        load.hear()
    monkeypatch.undo()
    rig.close()
    return history


def test_whenever_the_power_goes_the_index_tells_the_truth(recorded: list[Step], tmp_path: Path) -> None:
    """No segment is believed whose bytes are not all there, and none is lost of which the kernel was told."""
    choose = random.Random(1)
    believed = 0
    for moment in range(1, len(recorded) + 1):
        past = recorded[:moment]
        coming = recorded[moment] if moment < len(recorded) else None
        for data in _data_after(past, choose):
            for files in _index_after(past, coming, choose):
                stored = _load(tmp_path / "after", data, files)
                assert damaged(tmp_path / "after", stored) == []
                assert _promised(past) <= {each.record.segment for each in stored}
                believed += len(stored)
    assert believed > 10 * len(recorded)
    assert not any(isinstance(step, Told) and isinstance(step.event, WriteFailed) for step in recorded)


def _promised(past: list[Step]) -> set[SegmentId]:
    """What the kernel may rely on."""
    written = {step.event.segment for step in past if isinstance(step, Told) and isinstance(step.event, Written)}
    return written - {step.segment for step in past if isinstance(step, Forgot)}


def _data_after(past: list[Step], choose: random.Random) -> Iterator[bytes]:
    """What the data file may hold: what was synced, and of the rest nothing, all, or some pages in any order."""
    synced = max((at for at, step in enumerate(past) if isinstance(step, Synced)), default=0)
    data = bytearray(SWAP * PAGE)
    for step in past[:synced]:
        if isinstance(step, Wrote):
            data[step.offset : step.offset + len(step.data)] = step.data
    yield bytes(data)
    rest = [step for step in past[synced:] if isinstance(step, Wrote)]
    if not rest:
        return
    torn = bytearray(data)
    for step in rest:
        data[step.offset : step.offset + len(step.data)] = step.data
        for at in range(0, len(step.data), PAGE):
            if choose.random() < 0.5:
                page = step.data[at : at + PAGE]
                torn[step.offset + at : step.offset + at + len(page)] = page
    yield bytes(data)
    yield bytes(torn)


def _index_after(past: list[Step], coming: Step | None, choose: random.Random) -> Iterator[tuple[bytes, ...]]:
    """The index's files after the last commit, and in the middle of the next one."""
    last = next(step for step in reversed(past) if isinstance(step, Committed))
    yield last.files
    if isinstance(coming, Committed):
        (database, before), (_, after) = last.files, coming.files
        same = next(
            (at for at, (one, other) in enumerate(zip(before, after, strict=False)) if one != other), len(before)
        )
        for _ in range(2):
            at = choose.randrange(same, len(after))
            yield database, after[:at] + before[at:]


def _load(folder: Path, data: bytes, files: tuple[bytes, ...]) -> list[StoredSegment]:
    """As the node does after the power came back."""
    folder.mkdir(exist_ok=True)
    for name in ("index.db", "index.db-wal", "index.db-shm"):
        (folder / name).unlink(missing_ok=True)
    (folder / "segments").write_bytes(data)
    for name, content in zip(FILES, files, strict=True):
        (folder / name).write_bytes(content)
    rig = SwapRig(folder, swap=SWAP)
    stored = rig.open(start=False).load()
    assert rig.reports == []
    rig.close()
    return stored
