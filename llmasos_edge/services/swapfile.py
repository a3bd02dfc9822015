"""The swap file: saved state on the disk, in a file of fixed size, and an index that survives a power cut at any time.

In its folder lie `segments` (the data, allocated at the start, so that it never meets a full disk half-way) and
`index.db` (SQLite: which segment lies where). One thread does all reading, writing and moving; callers only queue.

The order on the disk: rows of what was forgotten are deleted; then data is written where it may have been, and synced;
then rows are added; then the kernel is told. So a row always stands for whole data. Writes that wait share a sync and
a commit, and reads come between the pieces of a write.
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from llmasos_edge.errors import Panic, StoreError
from llmasos_edge.kernel.memory.backing import (
    Moved,
    MoveFailed,
    ReadDone,
    ReadFailed,
    Record,
    StoredSegment,
    SwapEvent,
    SwapStatistics,
    WriteFailed,
    Written,
)
from llmasos_edge.kernel.memory.extent import Extent, Move
from llmasos_edge.kernel.units import Bytes, ModelId, SegmentId
from llmasos_edge.services.arena_memory import PIECE, ArenaMemory
from llmasos_edge.services.swap_disk import SwapDisk
from llmasos_edge.services.swap_index import Report, SwapIndex
from llmasos_edge.services.swap_queue import MoveStored, Read, SwapQueue, Write

FADING: Final = 0.8  # what a read counts in the rate, once another has come

log = logging.getLogger(__name__)


class SwapFile:
    """A SwapDevice. Opened by one daemon at a time."""

    def __init__(
        self,
        path: Path,
        size: Bytes,
        memory: ArenaMemory,
        deliver: Callable[[SwapEvent], None],
        *,
        report: Report,
        disk: Callable[[Path], SwapDisk] = SwapDisk,
    ) -> None:
        """Open the folder `path`, made if missing, with a swap file of `size` bytes (whole pages).

        StoreError, with what to do, if that can't be. `report(kind, details)` is told, on the caller's thread, of an
        index that was put aside (swap.index_aside), and of each segment that can't be where it says (swap.dropped).
        `disk` opens the data file: a benchmark's slow one, or a test's.
        """
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"swap file {path}: {error.strerror}: see to memory.swap.path") from None
        self._memory, self._deliver = memory, deliver
        self._repairs: list[Callable[[], object]] = []  # of rows that a failed commit may have left behind
        self._statistics = SwapStatistics(0, Bytes(0), 0, Bytes(0), Bytes(0), None)
        self._faded = 0.0, 0.0  # bytes that were read, and in how many milliseconds
        self._trouble = ""  # is logged once, until a write succeeds
        with contextlib.ExitStack() as undo:
            self._disk = disk(path / "segments")
            undo.callback(self._disk.close)
            self._index = SwapIndex(path / "index.db", report)
            undo.callback(self._index.close)
            self._stored, wrong = self._index.load(min(size, self._disk.found), report)
            self._queue = SwapQueue(wrong)
            self._strike_off(frozenset(wrong))  # before the file grows again to where they say they are
            self._disk.allocate(size)
            undo.pop_all()
        self._thread = threading.Thread(target=self._run, name="swap", daemon=True)

    def load(self) -> list[StoredSegment]:
        """What an earlier run left, for `Arena.reserve`: within the file, without overlap, by address.

        After a crash also what was forgotten last, or written and not yet told: all of it is whole.
        """
        return self._stored

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was queued is done, at most so long; whether it is. For the way down."""
        return self._queue.flush(timeout_s)

    def stop(self) -> None:
        """End the thread after what it has in hand, and close. What still waits is not done, and has no event."""
        self._queue.stop()
        if self._thread.ident is not None:
            self._thread.join()
        self._index.close()
        self._disk.close()

    def write(self, record: Record, source: Extent, target: Extent) -> None:
        self._queue.put(Write(record, source, target))

    def read(self, request: int, model: ModelId, source: Extent, target: Extent, size: Bytes) -> None:
        self._queue.put_read(Read(request, model, source, target, size))

    def forget(self, segments: Iterable[SegmentId]) -> None:
        self._queue.forget(segments)

    def move_stored(self, segment: SegmentId, move: Move) -> None:
        if move.overlaps:
            raise Panic(f"SwapFile.move_stored: a power cut would tear {move}")
        self._queue.put(MoveStored(segment, move))

    def statistics(self) -> SwapStatistics:
        return self._statistics

    # --- the thread

    def _run(self) -> None:
        while self._queue.wait():
            served = self._serve_reads()
            batch, forgotten = self._queue.head()
            match batch:
                case [MoveStored() as command]:
                    self._move_stored(command, self._strike_off(forgotten))
                case [] if served:
                    pass  # what is forgotten can wait, in case there are more reads
                case _:
                    why = self._strike_off(forgotten)
                    self._write([each for each in batch if isinstance(each, Write)], forgotten, why)
            self._queue.done(batch)

    def _strike_off(self, forgotten: frozenset[SegmentId]) -> str:
        """Delete the rows of what was forgotten: nothing is written before that. "", or why it can't be done."""

        def change() -> None:
            with self._index.transaction():
                for repair in self._repairs:
                    repair()
                self._index.forget(forgotten)

        why = self._attempt(change) if forgotten or self._repairs else ""
        if why:
            self._queue.give_up()
        else:
            self._repairs.clear()
            self._queue.struck_off(forgotten)
        return why

    def _write(self, writes: list[Write], forgotten: frozenset[SegmentId], why: str) -> None:
        copied: list[Write] = []
        for write in writes:
            failed = why or ("forgotten" if write.record.segment in forgotten else self._copy_out(write))
            if failed:
                self._tell(WriteFailed(write.record.segment, failed))
            else:
                copied.append(write)
        segments = [write.record.segment for write in copied]

        def commit() -> None:
            self._disk.sync()
            with self._index.transaction():
                for write in copied:
                    self._index.add(StoredSegment(write.record, write.target))

        if why := self._attempt(commit) if copied else "":
            self._repairs.append(lambda: self._index.forget(segments))
        elif copied:
            self._trouble = ""
        for write in copied:
            self._disk.drop_cache(write.target)
            self._count(writes=0 if why else 1, written=0 if why else write.record.size)
            self._tell(WriteFailed(write.record.segment, why) if why else Written(write.record.segment))

    def _copy_out(self, write: Write) -> str:
        """From the arena to the disk, where a sync will keep it; "", or why not."""

        def copy() -> None:
            at = write.target.offset
            for piece in self._memory.pieces(write.record.model, write.source, write.record.size):
                self._disk.write(piece, at)
                at += len(piece)
                self._serve_reads()

        return self._attempt(copy)

    def _serve_reads(self) -> bool:
        """All that can be read now; whether there was any."""
        served = False
        while (read := self._queue.next_read()) is not None:
            self._read(read)
            served = True
        return served

    def _read(self, read: Read) -> None:
        def copy() -> None:
            at = read.source.offset
            for piece in self._memory.pieces(read.model, read.target, read.size):
                self._disk.read(piece, at)
                at += len(piece)

        began = time.perf_counter()
        if why := self._attempt(copy):
            self._tell(ReadFailed(read.request, why))
        else:
            self._count_read(read.size, (time.perf_counter() - began) * 1000)
            self._tell(ReadDone(read.request))
        self._disk.drop_cache(read.source)

    def _move_stored(self, command: MoveStored, why: str) -> None:
        """The data first, then the pointer: whenever the power goes, it points to whole data."""
        segment, move = command.segment, command.move

        def copy() -> None:
            with memoryview(bytearray(min(PIECE, move.source.size))) as buffer:
                for at in range(0, move.source.size, PIECE):
                    with buffer[: min(PIECE, move.source.size - at)] as piece:
                        self._disk.read(piece, move.source.offset + at)
                        self._disk.write(piece, move.target.offset + at)
                    self._serve_reads()
            self._disk.sync()

        def commit() -> None:
            with self._index.transaction():
                if not self._index.move(segment, move.target):
                    raise StoreError(f"segment {segment} is not in the swap file")

        why = why or self._attempt(copy)
        if not why and (why := self._attempt(commit)):
            self._repairs.append(lambda: self._index.move(segment, move.source))
        self._disk.drop_cache(move.source)
        self._disk.drop_cache(move.target)
        self._end_move(segment, move, why)

    def _end_move(self, segment: SegmentId, move: Move, why: str) -> None:
        if why:
            self._tell(MoveFailed(segment, move, why))
        else:
            self._count(moved=move.source.size)
            self._tell(Moved(segment, move))

    def _attempt(self, action: Callable[[], object]) -> str:
        """Why it failed, or "": whatever it is, those who wait must be told."""
        try:
            action()
        except Exception as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                expected = isinstance(error, OSError | sqlite3.Error | StoreError)
                log.error("the swap file: %s", error, exc_info=not expected)
            return str(error)
        return ""

    def _tell(self, event: SwapEvent) -> None:
        try:
            self._deliver(event)
        except Exception:
            log.exception("the swap file's owner failed")

    def _count(self, *, writes: int = 0, written: int = 0, moved: int = 0) -> None:
        now = self._statistics
        self._statistics = replace(
            now, writes=now.writes + writes, written=Bytes(now.written + written), moved=Bytes(now.moved + moved)
        )

    def _count_read(self, size: int, ms: float) -> None:
        faded, faded_ms = self._faded[0] * FADING + size, self._faded[1] * FADING + ms
        self._faded = faded, faded_ms
        now = self._statistics
        self._statistics = replace(
            now, reads=now.reads + 1, read=Bytes(now.read + size), read_bytes_per_ms=faded / faded_ms
        )
