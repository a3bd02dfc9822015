"""A swap file with an arena, contents that are known by their number, and what it told."""

import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.swap_load import MODEL, park
from llmasos_edge.kernel.memory.backing import Record, StoredSegment, SwapEvent
from llmasos_edge.kernel.memory.extent import CONTROL_PAGE, PAGE, Extent
from llmasos_edge.kernel.units import Bytes
from llmasos_edge.services.arena_memory import ArenaMemory
from llmasos_edge.services.swap_disk import SwapDisk
from llmasos_edge.services.swapfile import SwapFile

PATIENCE_S = 10.0


def pages(offset: int, size: int) -> Extent:
    """An extent, in pages."""
    return Extent(offset * PAGE, size * PAGE)


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
        return park(self.memory, number, source, size or source.size)

    def parked(self, extent: Extent, size: int | None = None) -> bytes:
        """What is in the arena."""
        return os.pread(self.memory.fd(MODEL), size or extent.size, CONTROL_PAGE + extent.offset)

    def index(self, change: str, *values: Any) -> None:
        """Change the index behind the swap file's back, while it is closed."""
        connection = sqlite3.connect(self.folder / "index.db")
        connection.execute(change, values)
        connection.commit()
        connection.close()


class GatedDisk(SwapDisk):
    """Notes what it is asked for; a write waits for the gate, and any step can be made to fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.gate.set()
        self.writing = threading.Semaphore(0)
        self.done: list[str] = []
        self.broken = ""

    def step(self, what: str) -> None:
        if what == self.broken:
            raise OSError(5, f"{what}: input/output error")
        self.done.append(what)

    def write(self, piece: memoryview, offset: int) -> None:
        self.writing.release()
        assert self.gate.wait(PATIENCE_S)
        self.step("write")
        super().write(piece, offset)

    def read(self, piece: memoryview, offset: int) -> None:
        self.step("read")
        super().read(piece, offset)

    def sync(self) -> None:
        self.step("sync")
        super().sync()


def gated(rig: SwapRig) -> GatedDisk:
    """Open the rig with a gated disk, shut."""
    made: list[GatedDisk] = []

    def disk(path: Path) -> GatedDisk:
        made.append(GatedDisk(path))
        return made[0]

    rig.open(disk=disk)
    made[0].gate.clear()
    return made[0]


def write(rig: SwapRig, number: int, source: Extent, target: Extent, size: int | None = None) -> None:
    """Park a segment, and have it written."""
    assert rig.swap is not None
    rig.swap.write(rig.park(number, source, size), source, target)


def numbers(stored: list[StoredSegment]) -> list[int]:
    """Of segments, in order of place."""
    return [each.record.segment for each in stored]
