"""A swap file with an arena, contents that are known by their number, and what it told."""

import os
import queue
import random
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmasos_edge.kernel.memory.backing import Record, StoredSegment, SwapEvent
from llmasos_edge.kernel.memory.extent import CONTROL_PAGE, PAGE, Extent
from llmasos_edge.kernel.units import Bytes, ClientId, Milliseconds, ModelId, SegmentId, SessionId, Tokens
from llmasos_edge.services.arena_memory import ArenaMemory
from llmasos_edge.services.swap_disk import SwapDisk
from llmasos_edge.services.swapfile import SwapFile

PATIENCE_S = 10.0
MODEL = ModelId("smollm2")


def pages(offset: int, size: int) -> Extent:
    """An extent, in pages."""
    return Extent(offset * PAGE, size * PAGE)


def content(number: int, size: int) -> bytes:
    """What a segment of this number holds."""
    return random.Random(number).randbytes(size)


def record(number: int, size: int) -> Record:
    """A segment's entry, with the checksum of its content."""
    return Record(
        segment=SegmentId(number),
        client=ClientId("phone"),
        session=SessionId(f"chat {number}"),
        model=MODEL,
        fingerprint="sha256, q8_0",
        start=Tokens(number),
        end=Tokens(number + 1),
        size=Bytes(size),
        checksum=zlib.crc32(content(number, size)),
        used_at=Milliseconds(number),
    )


class SwapRig:
    """The swap file in `folder`, opened as often as one likes; the arena is kept. Sizes are in pages."""

    def __init__(self, folder: Path, arena: int = 256, swap: int = 256) -> None:
        self.folder, self.size = folder, Bytes(swap * PAGE)
        self.memory = ArenaMemory(Bytes(arena * PAGE))
        self.events: queue.SimpleQueue[SwapEvent] = queue.SimpleQueue()
        self.reports: list[tuple[str, dict[str, object]]] = []
        self.swap: SwapFile | None = None

    def open(self, *, start: bool = True, disk: Callable[[Path], SwapDisk] = SwapDisk) -> SwapFile:
        """Open it; the one before is stopped, and what it told is forgotten."""
        self.stop()
        self.reports.clear()
        self.events = queue.SimpleQueue()
        self.swap = SwapFile(
            self.folder,
            self.size,
            self.memory,
            self.events.put,
            report=lambda *told: self.reports.append(told),
            disk=disk,
        )
        if start:
            self.swap.start()
        return self.swap

    def stop(self) -> None:
        """Stop what is open."""
        swap, self.swap = self.swap, None
        if swap is not None:
            swap.stop()

    def close(self) -> None:
        """At the end."""
        self.stop()
        self.memory.close()

    def event(self) -> SwapEvent:
        """The next event."""
        return self.events.get(timeout=PATIENCE_S)

    def park(self, number: int, source: Extent, size: int | None = None) -> Record:
        """Put a segment's content into the arena, as a worker does."""
        data = content(number, size or source.size)
        assert os.pwrite(self.memory.fd(MODEL), data, CONTROL_PAGE + source.offset) == len(data)
        return record(number, len(data))

    def parked(self, extent: Extent, size: int | None = None) -> bytes:
        """What is in the arena."""
        return os.pread(self.memory.fd(MODEL), size or extent.size, CONTROL_PAGE + extent.offset)

    def index(self, change: str, *values: Any) -> None:
        """Change the index behind the swap file's back, while it is closed."""
        connection = sqlite3.connect(self.folder / "index.db")
        connection.execute(change, values)
        connection.commit()
        connection.close()


def damaged(folder: Path, stored: list[StoredSegment]) -> list[SegmentId]:
    """Those whose bytes are not what their checksum says, as a worker finds out."""
    with (folder / "segments").open("rb", buffering=0) as file:
        return [
            each.record.segment
            for each in stored
            if zlib.crc32(os.pread(file.fileno(), each.record.size, each.extent.offset)) != each.record.checksum
        ]
