"""How models that have work share the cores: each in its turn with all of them, or all at once with some each.

Both are measured, each on the models that are there and on what they compute, and the better one is kept for a while.
"""

from collections.abc import Sequence
from math import ceil
from typing import Final

from llmasos_edge.kernel.processor import Processor
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Milliseconds

RETRY_MS: Final = 2_000  # until the other way is tried again; doubled each time that it was no better
RETRY_MAX_MS: Final = 32_000


class Sharing:
    """Not thread-safe: on the kernel's thread, for the leases."""

    def __init__(self, cores: int, trace: Trace) -> None:
        self._cores, self._trace = cores, trace
        self._split = False
        self._trying = False
        self._retry_ms = RETRY_MS
        self._look_at: Milliseconds | None = None  # the trial is over, or one is due

    def places(self, rivals: Sequence[Processor], quantum_ms: Milliseconds, now: Milliseconds) -> int:
        """How many of them may hold a lease at a time; they share all the cores."""
        most = min(len(rivals), self._cores)
        if most < 2:
            return most
        if self._look_at is None:
            self._look_at = self._trial_ends(rivals, quantum_ms, now)
        elif now >= self._look_at and self._trying:
            self._decide(rivals, now)
        elif now >= self._look_at:
            self._split, self._trying = not self._split, True
            self._look_at = self._trial_ends(rivals, quantum_ms, now)
        return most if self._split else 1

    def _trial_ends(self, rivals: Sequence[Processor], quantum_ms: Milliseconds, now: Milliseconds) -> Milliseconds:
        """When each of them will have computed for a quantum at least."""
        places = min(len(rivals), self._cores) if self._split else 1
        return Milliseconds(now + quantum_ms * (1 + ceil(len(rivals) / places)))

    def _decide(self, rivals: Sequence[Processor], now: Milliseconds) -> None:
        gain, before = self.gain(rivals), not self._split
        split = before if gain is None else gain > 1
        self._retry_ms = min(RETRY_MAX_MS, 2 * self._retry_ms) if split is before else RETRY_MS
        if split is not before:
            self._trace.record(now, "cores.shared", split=split, gain=gain)
        self._split, self._trying, self._look_at = split, False, Milliseconds(now + self._retry_ms)

    def gain(self, rivals: Sequence[Processor]) -> float | None:
        """What they compute together when they run at once, in terms of what they do in turns; None: not known."""
        places = min(len(rivals), self._cores)
        speeds = [_speed(each, self._cores // places, self._cores) for each in rivals]
        known = [speed for speed in speeds if speed is not None]
        return places / len(rivals) * sum(known) if len(known) == len(speeds) else None


def _speed(processor: Processor, some: int, every: int) -> float | None:
    """With some of the cores, in terms of that with all of them, at what it does now."""
    few, full = processor.speeds.with_threads(some), processor.speeds.with_threads(every)
    width = sum(task.tokens - task.computed <= 1 for task in processor.seated)
    if width:
        return full.step(width) / few.step(width) if few.widths and full.widths else None
    return full.prefill_ms / few.prefill_ms
