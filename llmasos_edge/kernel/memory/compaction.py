"""Compaction: which extents to move, so that holes become one, a bounded number of bytes at a time."""

from collections.abc import Collection

from llmasos_edge.kernel.memory.arena import Arena
from llmasos_edge.kernel.memory.extent import Extent, Move
from llmasos_edge.kernel.units import Bytes


def plan(arena: Arena, movable: Collection[Extent], limit: Bytes, *, overlapping: bool) -> tuple[Move, ...]:
    """Moves of at most `limit` bytes in all, after which the largest hole is larger; () if there are none.

    They are for the order given, one after another: `Arena.open_move`, copy, `Arena.close_move`. Whoever allocates in
    between asks `Arena.can_move` before the next. Only extents of `movable` are moved. `overlapping`: the target of
    a move may overlap its source (in the arena; in the swap file a power cut would tear it).
    """
    raise NotImplementedError
