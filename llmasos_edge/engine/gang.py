"""The gang: how many of the granted threads take part in a step, which are as many as really get a core.

llama.cpp's threads meet at a barrier after each node of the graph and spin there, so one that waits for a core while
another process has it holds up all of them: beside one busy process two threads on two cores were 20 times slower than
one (docs/adr/0017). A gang runs together or not at all (Ousterhout, 1982); who can't be sure of a core is left out.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

TASKS: Final = "/proc/self/task"
WINDOW_S: Final = 0.2  # of computing, between two looks
LOST_MAX: Final = 0.5  # cores: threads that together wait for more than this are too many
RETRY_S: Final = 0.5  # until a thread that was left out is tried again; doubled each time that this was too early
RETRY_MAX_S: Final = 8.0


def waits() -> dict[int, int]:
    """Nanoseconds that each thread which computes has waited for a core, by thread id: all but Python's own others.

    Source: the kernel's scheduler/sched-stats document, `/proc/<pid>/schedstat`. Empty where it is not there.
    """
    others = {thread.native_id for thread in threading.enumerate()} - {threading.main_thread().native_id}
    found = {}
    for name in os.listdir(TASKS):  # noqa: PTH208 - no objects in between: this runs while others wait
        if int(name) not in others:
            with suppress(OSError, IndexError), open(f"{TASKS}/{name}/schedstat", "rb") as file:  # noqa: PTH123
                found[int(name)] = int(file.read().split()[1])  # else it has ended, or the kernel does not count
    return found


class Gang:
    """`threads` before each step, `ran` after it. `look` tells how long each thread waited; `clock` counts seconds."""

    def __init__(self, look: Callable[[], dict[int, int]] = waits, clock: Callable[[], float] = time.monotonic) -> None:
        self._look, self._clock = look, clock
        self._seen = look()
        self._ran_s = 0.0
        self._left_out = 0
        self._retry_at, self._retry_s = 0.0, RETRY_S

    def threads(self, granted: int) -> int:
        """At least one."""
        self._left_out = min(self._left_out, granted - 1)
        return granted - self._left_out

    def ran(self, seconds: float, granted: int) -> None:
        """A step took so long."""
        self._ran_s += seconds
        if self._ran_s < WINDOW_S or granted == 1:
            return
        seen = self._look()
        lost = sum(max(0, seen[thread] - self._seen.get(thread, 0)) for thread in seen) / 1e9 / self._ran_s
        self._seen, self._ran_s = seen, 0.0
        now = self._clock()
        if lost > LOST_MAX and self._left_out < granted - 1:
            self._left_out += 1
            self._retry_at = now + self._retry_s
            self._retry_s = min(RETRY_MAX_S, 2 * self._retry_s)
        elif self._left_out and now >= self._retry_at:
            self._left_out -= 1
            self._retry_at = now + self._retry_s
        elif not self._left_out:
            self._retry_s = RETRY_S
