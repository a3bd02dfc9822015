"""The daemon with a slow swap disk: `python -m benchmarks.slow_swap MB_PER_S ...`.

What is read comes from the disk, and takes at least as long as a disk of that rate would take.
"""

import sys
import time
from functools import partial
from pathlib import Path

from llmasos_edge.daemon import main, node
from llmasos_edge.services.swap_disk import SwapDisk
from llmasos_edge.services.swapfile import SwapFile

BURST_S = 0.001  # a thread can't sleep much shorter


class SlowDisk(SwapDisk):
    def __init__(self, bytes_per_s: float, path: Path) -> None:
        super().__init__(path)
        self._rate = bytes_per_s
        self._free_at = 0.0  # when the disk that is imitated has done all that was asked of it

    def read(self, piece: memoryview, offset: int) -> None:
        began = max(self._free_at, time.perf_counter())
        super().read(piece, offset)
        self._free_at = began + len(piece) / self._rate
        left = self._free_at - time.perf_counter()
        if left > BURST_S:
            time.sleep(left)


if __name__ == "__main__":
    rate = float(sys.argv.pop(1)) * 1e6
    setattr(node, "SwapFile", partial(SwapFile, disk=partial(SlowDisk, rate)))  # noqa: B010 - the class that the node makes
    main()
