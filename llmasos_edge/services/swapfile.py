"""The swap file: saved state on the disk, in a file of fixed size, and an index that survives a power cut at any time.

In its folder lie `segments` (the data, allocated at the start, so that it never meets a full disk half-way) and
`index.db` (SQLite: which segment lies where). One thread does all reading, writing and moving; callers only queue.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from llmasos_edge.kernel.memory.backing import Record, StoredSegment, SwapEvent, SwapStatistics
from llmasos_edge.kernel.memory.extent import Extent, Move
from llmasos_edge.kernel.units import Bytes, ModelId, SegmentId
from llmasos_edge.services.arena_memory import ArenaMemory


class SwapFile:
    """A SwapDevice. Opened by one daemon at a time (who holds the lock of the state directory)."""

    def __init__(
        self,
        path: Path,
        size: Bytes,
        memory: ArenaMemory,
        deliver: Callable[[SwapEvent], None],
        *,
        report: Callable[[str, dict[str, object]], None],
    ) -> None:
        """Open the folder `path`, made if missing, with a swap file of `size` bytes (whole pages).

        StoreError, with what to do, if that can't be. `report(kind, details)` is told, on the caller's thread, of an
        index that was put aside (swap.index_aside), and of each segment that can't be where it says (swap.dropped).
        """

    def load(self) -> list[StoredSegment]:
        """What an earlier run left, for `Arena.reserve`: within the file, without overlap. Before `start`."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the thread."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was queued is done, at most so long; whether it is. For the way down."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the thread after what it has in hand, and close. What still waits is not done, and has no event."""

    def write(self, record: Record, source: Extent, target: Extent) -> None: ...

    def read(self, request: int, model: ModelId, source: Extent, target: Extent, size: Bytes) -> None: ...

    def forget(self, segments: Iterable[SegmentId]) -> None: ...

    def move_parked(self, segment: SegmentId, model: ModelId, move: Move) -> None: ...

    def move_stored(self, segment: SegmentId, move: Move) -> None: ...

    def statistics(self) -> SwapStatistics:
        raise NotImplementedError
