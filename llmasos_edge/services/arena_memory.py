"""The arena's memory: a memfd for each model, made by the daemon and kept for its life, so that it outlives workers.

Each begins with the control page and is as long as the whole arena. The kernel's extents are ranges behind that page;
no two overlap, in whatever memfds they are, so that the pages of all memfds together are never more than the arena.
"""

import contextlib
import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from typing import Final

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.memory.extent import CONTROL_PAGE, Extent, Move
from llmasos_edge.kernel.units import Bytes, ModelId

PIECE: Final = 1 << 20  # mapped at a time: what is mapped counts as the daemon's
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
BLOCK: Final = 512  # the unit of st_blocks (stat(2))


class ArenaMemory:
    """Calls from any thread; ranges of different extents do not disturb each other."""

    def __init__(self, size: Bytes) -> None:
        self.size: Final = size
        self._files: dict[ModelId, int] = {}
        self._lock = threading.Lock()  # of _files

    def fd(self, model: ModelId) -> int:
        """The model's memfd, made at first need: for a worker to inherit and map. It is closed by `close` alone.

        It can neither shrink nor grow (sealed): whoever maps it never meets SIGBUS.
        """
        with self._lock:
            if model not in self._files:
                memfd = os.memfd_create(f"llmasos-{model}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                os.ftruncate(memfd, CONTROL_PAGE + self.size)
                fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, SEALS)
                self._files[model] = memfd
            return self._files[model]

    def discard(self, model: ModelId, extent: Extent) -> None:
        """Give the extent's pages back, now. For what is freed, before anyone else can have it."""
        self._check(extent)
        with contextlib.closing(mmap.mmap(self.fd(model), extent.size, offset=CONTROL_PAGE + extent.offset)) as pages:
            pages.madvise(mmap.MADV_REMOVE)  # a hole in the file (madvise(2))

    def pieces(self, model: ModelId, extent: Extent, size: int) -> Iterator[memoryview]:
        """The first `size` bytes of the extent, a mapped piece at a time, in ascending order; each until the next."""
        self._check(extent)
        memfd = self.fd(model)
        for at in range(0, size, PIECE):
            length = min(PIECE, size - at)
            with mmap.mmap(memfd, length, offset=CONTROL_PAGE + extent.offset + at) as pages, memoryview(pages) as view:
                yield view

    def move(self, model: ModelId, move: Move) -> None:
        """Copy the source's bytes to the target, and discard what is then left of the source."""
        at = CONTROL_PAGE + move.target.offset
        for piece in self.pieces(model, move.source, move.source.size):
            # In ascending order, and without the GIL: so the target may overlap the source if it is the lower.
            at += os.pwrite(self.fd(model), piece, at)
        self.discard(model, move.vacated)

    def allocated(self) -> Bytes:
        """The bytes that all memfds really hold, control pages included."""
        with self._lock:
            return Bytes(sum(os.fstat(memfd).st_blocks for memfd in self._files.values()) * BLOCK)

    def close(self) -> None:
        """Close all memfds; their pages live as long as a worker maps them."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def _check(self, extent: Extent) -> None:
        if not 0 <= extent.offset < extent.end <= self.size:
            raise Panic(f"ArenaMemory: {extent} in an arena of {self.size} bytes")
