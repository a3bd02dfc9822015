"""A load for a swap file: segments with known contents, written, forgotten and moved as the kernel does it.

`python -m benchmarks.swap_load FOLDER SEED NUMBER`: the same as a program to be killed; it prints what it can rely on.
"""

import os
import queue
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.memory.arena import Arena
from llmasos_edge.kernel.memory.backing import Moved, Record, StoredSegment, SwapEvent, Written
from llmasos_edge.kernel.memory.extent import CONTROL_PAGE, Extent, Move
from llmasos_edge.kernel.units import Bytes, ClientId, Milliseconds, ModelId, SegmentId, SessionId, Tokens
from llmasos_edge.services.arena_memory import ArenaMemory
from llmasos_edge.services.swapfile import SwapFile

MODEL: Final = ModelId("smollm2")
PATIENCE_S: Final = 30.0
ARENA: Final = Bytes(8 << 20)
SWAP: Final = Bytes(24 << 20)
LARGEST: Final = 1 << 20  # of the program's segments


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


def park(memory: ArenaMemory, number: int, source: Extent, size: int) -> Record:
    """Put a segment's content into the arena, as a worker does."""
    if os.pwrite(memory.fd(MODEL), content(number, size), CONTROL_PAGE + source.offset) != size:
        raise Panic("swap_load: a short write to the arena")
    return record(number, size)


def damaged(folder: Path, stored: list[StoredSegment]) -> list[SegmentId]:
    """Those whose bytes are not what their checksum says, as a worker finds out."""
    with (folder / "segments").open("rb", buffering=0) as file:
        return [
            each.record.segment
            for each in stored
            if zlib.crc32(os.pread(file.fileno(), each.record.size, each.extent.offset)) != each.record.checksum
        ]


class SwapLoad:
    """One who uses a swap file at random; what is named in a command is held until its event."""

    def __init__(
        self,
        swap: SwapFile,
        memory: ArenaMemory,
        sizes: tuple[Bytes, Bytes],
        events: queue.SimpleQueue[SwapEvent],
        choose: random.Random,
    ) -> None:
        """`sizes` of the arena and of the swap file. Whoever uses it sets `number`, `largest`, and who is told."""
        self._swap, self._memory, self._events, self._choose = swap, memory, events, choose
        self._arena, self._places = (Arena(size, "best-fit") for size in sizes)
        self._writing: dict[SegmentId, tuple[Extent, Extent]] = {}
        self._moving: dict[SegmentId, Move] = {}
        self._stored: dict[SegmentId, Extent] = {}
        self.number = self.moves = 0  # of the last segment; begun so far
        self.largest = LARGEST
        self.on_written: Callable[[SegmentId], None] = lambda _: None
        self.on_forget: Callable[[SegmentId], None] = lambda _: None

    @property
    def idle(self) -> bool:
        return not self._writing and not self._moving

    def take_over(self, stored: list[StoredSegment]) -> None:
        """What an earlier one left."""
        for each in stored:
            if not self._places.reserve(each.extent):
                raise Panic(f"swap_load: {each} can't be where it is")
            self._stored[each.record.segment] = each.extent

    def step(self) -> None:
        """Something at random; half of it writes."""
        self._choose.choice((self.write, self.write, self.write, self.forget, self.move, self.hear))()

    def write(self) -> None:
        """A new segment, if there is room; else an old one goes first."""
        size = Bytes(self._choose.randint(1, self.largest))
        source, target = self._arena.allocate(size), self._places.allocate(size)
        if source is None or target is None:
            for arena, extent in ((self._arena, source), (self._places, target)):
                if extent is not None:
                    arena.free(extent)
            self.forget()
            self.hear()
            return
        self.number += 1
        self._writing[SegmentId(self.number)] = source, target
        self._swap.write(park(self._memory, self.number, source, size), source, target)

    def forget(self) -> None:
        """One that is stored; its place can be taken at once."""
        if self._stored:
            segment = self._choose.choice(sorted(self._stored))
            self.on_forget(segment)
            self._swap.forget([segment])
            self._places.free(self._stored.pop(segment))

    def move(self) -> None:
        """One that is stored, into a hole, while nothing else moves."""
        if not self._stored or self._moving:
            return
        segment = self._choose.choice(sorted(self._stored))
        source = self._stored[segment]
        for hole in self._places.holes():
            move = Move(source, Extent(hole.offset, source.size))
            if self._places.can_move(move) and not move.overlaps:
                self._places.open_move(move)
                self._moving[segment] = move
                del self._stored[segment]
                self.moves += 1
                self._swap.move_stored(segment, move)
                return

    def hear(self) -> None:
        """The next event, if one is due."""
        if self.idle:
            return
        match self._events.get(timeout=PATIENCE_S):
            case Written(segment):
                self.on_written(segment)
                source, self._stored[segment] = self._writing.pop(segment)
                self._arena.free(source)
            case Moved(segment, move):
                self._places.close_move(self._moving.pop(segment), moved=True)
                self._stored[segment] = move.target
            case other:
                raise Panic(f"swap_load: {other}")


def main() -> None:
    folder, seed, number = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    memory = ArenaMemory(ARENA)
    events: queue.SimpleQueue[SwapEvent] = queue.SimpleQueue()
    swap = SwapFile(folder, SWAP, memory, events.put, report=lambda kind, details: sys.exit(f"{kind} {details}"))
    load = SwapLoad(swap, memory, (ARENA, SWAP), events, random.Random(seed))
    load.take_over(swap.load())
    load.number = number
    load.on_written = lambda segment: _say(f"written {segment}")
    load.on_forget = lambda segment: _say(f"forgotten {segment}")
    swap.start()
    _say("ready 0")
    while os.getppid() != 1:  # the one who would kill it is there
        load.step()


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    main()
