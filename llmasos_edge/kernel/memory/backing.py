"""The backing store: what the kernel says to whoever moves saved state between arena and disk, and what it hears back.

Commands return at once and are carried out on a thread of the device's own. Events come back through `deliver`, on that
thread. An extent that a command names stays as it is (held, neither moved nor freed) until the command's event
has come; there is one for each `write`, `read` and `move_stored`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from llmasos_edge.kernel.memory.extent import Extent, Move
from llmasos_edge.kernel.units import Bytes, ClientId, Milliseconds, ModelId, SegmentId, SessionId, Tokens


@dataclass(frozen=True, slots=True)
class Record:
    """What the index keeps of a segment. The fingerprint is opaque: model, KV type and engine that it was made with."""

    segment: SegmentId
    client: ClientId
    session: SessionId
    model: ModelId
    fingerprint: str
    start: Tokens
    end: Tokens
    size: Bytes
    checksum: int
    used_at: Milliseconds  # of the node's running time, all boots together


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A segment that is in the swap file, all of it, and will be after a power cut."""

    record: Record
    extent: Extent


@dataclass(frozen=True, slots=True)
class Written:
    """The segment is in the swap file and in its index: its place in the arena may be reused."""

    segment: SegmentId


@dataclass(frozen=True, slots=True)
class WriteFailed:
    """It is not, and will not be found there after a restart: the extent in the swap file may be freed."""

    segment: SegmentId
    why: str


@dataclass(frozen=True, slots=True)
class ReadDone:
    """The bytes are in the arena. Whether they are the right ones, the checksum says (the worker verifies it)."""

    request: int


@dataclass(frozen=True, slots=True)
class ReadFailed:
    request: int
    why: str


@dataclass(frozen=True, slots=True)
class Moved:
    """The target has the bytes (in the swap file: durably, and the index says so): the source may be freed."""

    segment: SegmentId
    move: Move


@dataclass(frozen=True, slots=True)
class MoveFailed:
    """The source still has the bytes: the target may be freed."""

    segment: SegmentId
    move: Move
    why: str


SwapEvent = Written | WriteFailed | ReadDone | ReadFailed | Moved | MoveFailed


@dataclass(frozen=True, slots=True)
class SwapStatistics:
    """Counted since the start. `read_bytes_per_ms` is smoothed over the last reads; None before the first."""

    writes: int
    written: Bytes
    reads: int
    read: Bytes
    moved: Bytes
    read_bytes_per_ms: float | None


class SwapDevice(Protocol):
    """A swap file. Reads come before waiting writes; all else is done in the order given."""

    def write(self, record: Record, source: Extent, target: Extent) -> None:
        """Copy `record.size` bytes from the arena (`source`) into the swap file -> Written or WriteFailed.

        A segment that is forgotten before its turn has come is not written: WriteFailed.
        """

    def read(self, request: int, model: ModelId, source: Extent, target: Extent, size: Bytes) -> None:
        """Copy `size` bytes from the swap file (`source`) into the arena -> ReadDone or ReadFailed."""

    def forget(self, segments: Iterable[SegmentId]) -> None:
        """Strike them off the index. Their extents may be freed and named in a `write` at once. No event."""

    def move_stored(self, segment: SegmentId, move: Move) -> None:
        """Move a segment inside the swap file; source and target do not overlap -> Moved or MoveFailed."""

    def statistics(self) -> SwapStatistics: ...
