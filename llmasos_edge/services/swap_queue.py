"""What waits for the swap file's thread: reads first, all else in order, and segments that are to be forgotten."""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from llmasos_edge.kernel.memory.backing import Record
from llmasos_edge.kernel.memory.extent import Extent, Move
from llmasos_edge.kernel.units import Bytes, ModelId, SegmentId

BATCH: Final = 8 << 20  # bytes that share a sync; a larger segment has one of its own
LATER_S: Final = 1.0  # what was forgotten is struck off before the next write, or after this


@dataclass(frozen=True, slots=True)
class Write:
    record: Record
    source: Extent
    target: Extent


@dataclass(frozen=True, slots=True)
class Read:
    request: int
    model: ModelId
    source: Extent
    target: Extent
    size: Bytes


@dataclass(frozen=True, slots=True)
class MoveStored:
    segment: SegmentId
    move: Move


Command = Write | MoveStored


class SwapQueue:
    """Put by any thread, taken by one. What is in hand stays at the head until it is done."""

    def __init__(self, forgotten: set[SegmentId]) -> None:
        self._reads: deque[Read] = deque()
        self._commands: deque[Command] = deque()
        self._forgotten = forgotten
        self._busy = self._flushing = self._stopping = False
        self._changed = threading.Condition()

    def put(self, command: Command) -> None:
        with self._changed:
            self._commands.append(command)
            self._changed.notify_all()

    def put_read(self, read: Read) -> None:
        with self._changed:
            self._reads.append(read)
            self._changed.notify_all()

    def forget(self, segments: Iterable[SegmentId]) -> None:
        with self._changed:
            self._forgotten.update(segments)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is left, at most so long; whether that is so."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: not (self._busy or self._reads or self._commands or self._forgotten), timeout_s
            )
            self._flushing = False
            return done

    def stop(self) -> None:
        """Let the thread end; what it has not in hand stays undone."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    # --- for the thread

    def wait(self) -> bool:
        """Until there is something to do; False when it is to end."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._stopping or self._reads or self._commands or (self._flushing and self._forgotten),
                LATER_S if self._forgotten else None,
            )
            self._busy = True
            return not self._stopping

    def next_read(self) -> Read | None:
        """The next, unless what it would read is still to be written. It is taken out."""
        with self._changed:
            targets = [command.target for command in self._commands if isinstance(command, Write)]
            for read in self._reads:
                if not any(read.source.overlaps(target) for target in targets):
                    self._reads.remove(read)
                    return read
        return None

    def head(self) -> tuple[list[Command], frozenset[SegmentId]]:
        """The first commands that wait (writes that share a sync, or one of another kind); what is forgotten now."""
        with self._changed:
            return self._batch(), frozenset(self._forgotten)

    def _batch(self) -> list[Command]:
        batch: list[Command] = []
        size = 0
        for command in self._commands:
            if not isinstance(command, Write):
                return batch or [command]
            size += command.record.size
            if batch and size > BATCH:
                break
            batch.append(command)
        return batch

    def done(self, batch: list[Command]) -> None:
        with self._changed:
            for _ in batch:
                self._commands.popleft()

    def struck_off(self, forgotten: frozenset[SegmentId]) -> None:
        """Their rows are gone for good; but a write that still waits must find its segment forgotten."""
        with self._changed:
            to_come = {command.record.segment for command in self._commands if isinstance(command, Write)}
            self._forgotten -= forgotten - to_come

    def give_up(self) -> None:
        """They can't be struck off now: not before the next occasion, whoever waits for it."""
        with self._changed:
            self._flushing = False
