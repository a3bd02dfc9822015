"""Where sessions' state lies on this machine: the arena's memory and, if the node file names one, a swap file."""

import logging
from collections.abc import Callable
from typing import Final

from llmasos_edge.config.node import NodeConfig
from llmasos_edge.daemon.kernel_loop import monotonic_ms
from llmasos_edge.kernel.memory.arena import Arena
from llmasos_edge.kernel.memory.backing import SwapEvent
from llmasos_edge.kernel.segments import Stores
from llmasos_edge.kernel.swapper import Swapper
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.services.arena_memory import ArenaMemory
from llmasos_edge.services.swapfile import SwapFile

log = logging.getLogger(__name__)
FLUSH_S: Final = 10.0


class SavedState:
    """Made, started and stopped on the main thread."""

    def __init__(self, config: NodeConfig, trace: Trace, deliver: Callable[[SwapEvent], None]) -> None:
        """Takes up what an earlier run left in the swap file. Raises StoreError. `deliver` is called on its thread."""
        sizes, swap = config.memory, None
        self._trace = trace
        self._file: SwapFile | None = None
        self.memory: Final = ArenaMemory(sizes.arena)
        if sizes.swap is not None:
            self._file = SwapFile(sizes.swap.path, sizes.swap.size, self.memory, deliver, report=self._report)
            swap = Arena(sizes.swap.size, sizes.fit)
        stores = Stores(Arena(sizes.arena, sizes.fit), self.memory, swap, self._file, config.sessions.quota)
        self.swapper: Final = Swapper(stores, trace)
        if self._file is not None:
            self.swapper.adopt(self._file.load())

    def start(self) -> None:
        if self._file is not None:
            self._file.start()

    def stop(self) -> None:
        """What is queued is still written, if the disk is not too slow for that."""
        if self._file is not None:
            if not self._file.flush(FLUSH_S):
                log.warning("the swap file's disk is too slow: some sessions will be computed again")
            self._file.stop()
        self.memory.close()

    def _report(self, kind: str, details: dict[str, object]) -> None:
        log.warning("%s: %s", kind, details)
        self._trace.record(monotonic_ms(), kind, **details)
