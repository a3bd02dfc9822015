"""Segments of saved state: the extents that they hold in the arena and in the swap file, freed and moved about."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.memory.arena import Arena
from llmasos_edge.kernel.memory.backing import Moved, MoveFailed, SwapDevice
from llmasos_edge.kernel.memory.compaction import plan
from llmasos_edge.kernel.memory.extent import Extent, Move
from llmasos_edge.kernel.memory.kv_state import KvState, Segment
from llmasos_edge.kernel.units import Bytes, ModelId, SegmentId, Tokens

SWAP_STEP: Final = Bytes(32 << 20)  # bytes of the swap file that are moved at a time


class Pages(Protocol):
    """The RAM behind the arena."""

    def discard(self, model: ModelId, extent: Extent) -> None:
        """Give the pages of a range back to the system, at once."""

    def move(self, model: ModelId, move: Move) -> None:
        """Copy the bytes, and give back the pages that are left of the source, at once."""


@dataclass(frozen=True, slots=True)
class Stores:
    """Where saved state may lie. Without a swap device it lies in the arena only, and dies with the daemon."""

    arena: Arena
    memory: Pages
    swap: Arena | None = None
    device: SwapDevice | None = None
    quota: Bytes = Bytes(1 << 40)  # of all sessions of one client


class Segments:
    """An extent is freed when its segment is unwanted and no command needs it where it is."""

    def __init__(self, stores: Stores, states: Callable[[], Iterable[KvState]]) -> None:
        """`states` gives all whose segments may be moved."""
        self.arena: Final = stores.arena
        self.swap: Final = stores.swap
        self.device: Final = stores.device
        self._memory, self._states = stores.memory, states
        self._busy: dict[SegmentId, tuple[KvState, Segment]] = {}  # a command about it is under way
        self._moves: dict[SegmentId, Move] = {}  # under way in the swap file

    def begin(self, segment: Segment, state: KvState) -> None:
        """A command about it is given: it is held until `finished`."""
        segment.holds += 1
        self._busy[segment.id] = state, segment

    def found(self, segment: SegmentId) -> tuple[KvState, Segment] | None:
        """What the command was about that has ended; `unhold` it then. None: it was abandoned."""
        return self._busy.pop(segment, None)

    def unhold(self, segment: Segment, state: KvState) -> None:
        segment.holds -= 1
        if segment.dead and segment.holds == 0:
            self.free(segment, state)

    def truncate(self, state: KvState, tokens: int) -> None:
        """Only the first `tokens` tokens stay saved."""
        while state.segments and state.segments[-1].start >= tokens:
            self.free(state.segments.pop(), state)
        if state.segments and state.segments[-1].end > tokens:
            state.segments[-1].end = Tokens(tokens)

    def free(self, segment: Segment, state: KvState) -> None:
        segment.dead = True
        if segment.holds:
            return
        if segment.extent is not None:
            self.free_extent(segment, state)
        self.free_target(segment)
        if segment.swapped is not None and self.swap is not None and self.device is not None:
            self.device.forget([segment.id])
            self.swap.free(segment.swapped)
            segment.swapped = None

    def free_target(self, segment: Segment) -> None:
        if segment.target is not None and self.swap is not None:
            self.swap.free(segment.target)
            segment.target = None

    def free_extent(self, segment: Segment, state: KvState) -> None:
        if segment.extent is None:
            raise Panic(f"Swapper.free_extent: {segment.id} is not in the arena")
        self._memory.discard(state.model, segment.extent)
        self.arena.free(segment.extent)
        segment.extent = None

    # ---- moving

    def compact(self, limit: Bytes) -> Bytes:
        """Move saved state together, at most so many bytes: holes become one. How much was moved."""
        lying = {
            each.extent: (state, each)
            for state in self._states()
            for each in state.segments
            if each.extent is not None and not each.holds
        }
        moved = 0
        for move in plan(self.arena, lying.keys(), limit, overlapping=True):
            state, segment = lying[move.source]
            self.arena.open_move(move)
            self._memory.move(state.model, move)
            self.arena.close_move(move, moved=True)
            segment.extent = move.target
            lying[move.target] = state, segment
            moved += move.source.size
        return Bytes(moved)

    def compact_swap(self) -> Bytes:
        """Begin to do the same in the swap file, and go on until its holes are one. How much is being moved."""
        if self.swap is None or self.device is None or self._moves:
            return Bytes(0)
        lying = {
            each.swapped: (state, each)
            for state in self._states()
            for each in state.segments
            if each.swapped is not None and not each.holds
        }
        for move in plan(self.swap, lying.keys(), SWAP_STEP, overlapping=False):
            if not self.swap.can_move(move) or move.source not in lying:
                break  # it is for when those before it are done
            state, segment = lying[move.source]
            self.swap.open_move(move)
            self._moves[segment.id] = move
            self.begin(segment, state)
            self.device.move_stored(segment.id, move)
        return Bytes(sum(move.source.size for move in self._moves.values()))

    def moved(self, segment: Segment, event: Moved | MoveFailed) -> None:
        move = self._moves.pop(segment.id)
        if self.swap is None:
            raise Panic(f"Swapper._moved: {event} without a swap file")
        self.swap.close_move(move, moved=isinstance(event, Moved))
        if isinstance(event, Moved):
            segment.swapped = move.target

    @property
    def moving(self) -> bool:
        """Something in the swap file."""
        return bool(self._moves)

    def check_invariants(self, states: Iterable[KvState], restored: Iterable[Segment]) -> None:
        """Every held byte of arena and swap file belongs to exactly one segment; `restored`: that workers read."""
        segments = {segment.id: segment for state in states for segment in state.segments}
        segments |= {segment.id: segment for _, segment in self._busy.values()}
        segments |= {segment.id: segment for segment in restored}
        _check_held(self.arena, [each.extent for each in segments.values()])
        if self.swap is not None:
            swapped = [extent for each in segments.values() for extent in (each.swapped, each.target)]
            _check_held(self.swap, [*swapped, *(move.target for move in self._moves.values())])


def _check_held(arena: Arena, extents: Iterable[Extent | None]) -> None:
    arena.check_invariants()
    held = sum(extent.size for extent in extents if extent is not None)
    if held != arena.statistics().used:
        raise Panic(f"Segments.check_invariants: they hold {held} of {arena.statistics().used} bytes")
