"""Relief: what the kernel gives back while memory is short. Parks, then drops, then refuses (docs/adr/0025)."""

from collections.abc import Collection
from typing import Final

from llmasos_edge.errors import NoMemory
from llmasos_edge.kernel.loader import Loader
from llmasos_edge.kernel.memory.pressure import CALM_MS, Level, Space, Strain, after
from llmasos_edge.kernel.pools import Pools
from llmasos_edge.kernel.processor import Phase, Processor
from llmasos_edge.kernel.swapper import Swapper
from llmasos_edge.kernel.task import Submission
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Bytes, Milliseconds, Priority
from llmasos_edge.kernel.workers import Workers

RETRY_MS: Final = 2 * CALM_MS


class Relief:
    """Not thread-safe: on the kernel's thread, for the dispatcher."""

    def __init__(self, loader: Loader, swapper: Swapper, pools: Pools, workers: Workers, trace: Trace) -> None:
        self._loader, self._swapper, self._pools, self._workers, self._trace = loader, swapper, pools, workers, trace

    def felt(self, spaces: Collection[Space], now: Milliseconds) -> None:
        """What was measured now: once a second while anything is short, and until all is calm."""
        before = self._loader.pressure
        found = self._loader.pressure = after(before, spaces, now)
        if found.level is not before.level:
            words = {"level": found.level.word, "was": before.level.word}
            self._trace.record(now, "memory.pressure", **words, why=found.why)
        if max((space.strain for space in spaces), default=Strain.CALM) < Strain.SHORT:
            return
        freed = self._park(found.level, now)
        if freed:
            self._trace.record(now, "memory.parked", bytes=freed)
        if found.level >= Level.DROP:
            self._drop(now)

    def _park(self, level: Level, now: Milliseconds) -> Bytes:
        """Cells that nobody needs, and the idle sessions' part of the arena, as far as it is written.

        Without a swap file they keep it until models are dropped; then they are computed again when they go on.
        """
        held = self._swapper.arena.statistics().used
        for state in self._swapper.states():
            if state.task is None:
                self._swapper.swap_out(state)
                if level >= Level.DROP and self._swapper.device is None:
                    self._swapper.drop(state)
        freed = held - self._swapper.arena.statistics().used
        return Bytes(freed + self._pools.shrink(now))

    def _drop(self, now: Milliseconds) -> None:
        """One idle model at each look, in the order of replacement."""
        victim = self._loader.idle_victim(now)
        if victim is not None:
            freed = victim.bytes
            self._workers.drop(victim, now)
            self._trace.record(now, "memory.dropped", model=victim.model, bytes=freed)

    def check(self, processor: Processor, submission: Submission, now: Milliseconds) -> None:
        """Raises NoMemory for a new task at the last level.

        An alarm for a model that is loaded is let in: it takes the place of others, so it takes little memory.
        """
        alarm = submission.priority is Priority.CRITICAL and processor.phase is Phase.LOADED
        if self._loader.pressure.level >= Level.REFUSE and not alarm:
            self._trace.record(now, "memory.refused", client=submission.client, model=processor.model)
            raise self._short()

    def check_load(self) -> None:
        """Raises NoMemory while nothing is loaded."""
        if self._loader.pressure.level >= Level.DROP:
            raise self._short()

    def _short(self) -> NoMemory:
        why = self._loader.pressure.why
        text = f"the machine is short of memory ({why}): ask again later, or stop other programs"
        return NoMemory(text, retry_after_ms=RETRY_MS)
