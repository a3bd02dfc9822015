"""KV state: what is saved of the tokens that a session, or a preempted task, has computed; and where it lies."""

from dataclasses import dataclass, field
from enum import Enum

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.memory.backing import Record
from llmasos_edge.kernel.memory.extent import Extent
from llmasos_edge.kernel.units import Bytes, ClientId, Milliseconds, ModelId, SegmentId, SessionId, TaskId, Tokens

Session = tuple[ClientId, SessionId]


class Residency(Enum):
    RESIDENT = "resident"  # a task has it in its sequence
    PARKED = "parked"  # all of it is in the arena
    SWAPPED = "swapped"  # some of it is only in the swap file
    DROPPED = "dropped"  # nothing is saved: its tokens are computed again


@dataclass(slots=True, eq=False)
class Segment:
    """The saved state of tokens [start, end): in the arena, in the swap file, or in both.

    `holds` counts the commands under way that need its ranges where they are; a segment that nobody wants any more
    while it is held is `dead`, and freed after them.
    """

    id: SegmentId
    start: Tokens
    end: Tokens
    size: Bytes = Bytes(0)
    checksum: int = 0
    extent: Extent | None = None
    swapped: Extent | None = None
    target: Extent | None = None  # where in the swap file it is being written
    holds: int = 0
    dead: bool = False

    @property
    def dirty(self) -> bool:
        """The only copy is in RAM."""
        return self.swapped is None


@dataclass(slots=True, eq=False)
class KvState:
    """Segments in ascending order, each beginning where the one before it ends. `session` None: a task's own.

    Tokens before the first segment are a shared prefix. It is bound to `fingerprint`: to the model's file, the KV
    type and the engine's version; under any other it means nothing.
    """

    model: ModelId
    fingerprint: str
    session: Session | None = None
    segments: list[Segment] = field(default_factory=list)
    saving: Segment | None = None  # until the worker has told what became of it
    arriving: int = 0  # segments on their way from the swap file
    task: TaskId | None = None  # the live task whose state it is
    resident: bool = False
    used_at: Milliseconds = Milliseconds(0)

    @property
    def end(self) -> Tokens:
        """Tokens whose state is saved, with the shared ones before them."""
        return self.segments[-1].end if self.segments else Tokens(0)

    @property
    def bytes(self) -> Bytes:
        return Bytes(sum(segment.size for segment in self.segments))

    @property
    def residency(self) -> Residency:
        if self.resident:
            return Residency.RESIDENT
        if not self.segments:
            return Residency.DROPPED
        parked = all(segment.extent is not None for segment in self.segments)
        return Residency.PARKED if parked else Residency.SWAPPED

    @property
    def missing(self) -> list[Segment]:
        """What is only in the swap file."""
        return [segment for segment in self.segments if segment.extent is None]

    def leading(self) -> tuple[Segment, ...]:
        """The segments from the first on that are in the arena."""
        count = next((at for at, each in enumerate(self.segments) if each.extent is None), len(self.segments))
        return tuple(self.segments[:count])

    def record(self, segment: Segment, used_at: Milliseconds) -> Record:
        """What the swap file's index keeps of one of its segments."""
        if self.session is None:
            raise Panic(f"KvState.record: {segment.id} belongs to no session")
        client, session = self.session
        return Record(
            segment=segment.id,
            client=client,
            session=session,
            model=self.model,
            fingerprint=self.fingerprint,
            start=segment.start,
            end=segment.end,
            size=segment.size,
            checksum=segment.checksum,
            used_at=used_at,
        )

    def check_invariants(self) -> None:
        for before, after in zip(self.segments, self.segments[1:], strict=False):
            if before.end != after.start:
                raise Panic(f"KvState.check_invariants: {before.id} ends at {before.end}, {after.id} at {after.start}")
        for segment in self.segments:
            if segment.dead or segment.start >= segment.end or segment.holds < 0:
                raise Panic(f"KvState.check_invariants: segment {segment}")
            if segment.extent is None and segment.swapped is None:
                raise Panic(f"KvState.check_invariants: {segment.id} is nowhere")
