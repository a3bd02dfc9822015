"""Compaction: which extents to move, so that holes become one, a bounded number of bytes at a time.

Each step makes one hole larger, the largest that can be: it sends a neighbour of the hole away into one that is not
larger, or it slides all that lies between two holes down, and makes one of both. Of what is possible it does what
yields most for the bytes copied. No step makes a larger hole smaller, so there is an end to it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from llmasos_edge.kernel.memory.arena import Arena
from llmasos_edge.kernel.memory.extent import Extent, Hole, Move
from llmasos_edge.kernel.memory.holes import Holes
from llmasos_edge.kernel.units import Bytes

MOVES: Final = 64  # of one plan


@dataclass(frozen=True, slots=True)
class _Step:
    """Moves that make a hole larger by `gain` bytes, and copy `cost`."""

    moves: tuple[Move, ...]
    gain: int
    cost: int

    @property
    def rank(self) -> tuple[float, int]:
        return self.gain / self.cost, -self.cost


def plan(arena: Arena, movable: Collection[Extent], limit: Bytes, *, overlapping: bool) -> tuple[Move, ...]:
    """Moves of at most `limit` bytes in all, after which the largest hole is larger; () if there are none.

    They are for the order given, one after another: `Arena.open_move`, copy, `Arena.close_move`. Whoever allocates in
    between asks `Arena.can_move` before the next. Only extents of `movable` are moved. `overlapping`: the target of
    a move may overlap its source (in the arena; in the swap file a power cut would tear it).
    """
    planner = _Planner(arena.holes(), movable, overlapping)
    largest, left = planner.largest(), limit
    moves: list[Move] = []
    worth = 0  # so many of the moves, and the largest hole is larger
    while len(moves) < MOVES and (step := planner.best(left)) is not None:
        planner.apply(step)
        moves += step.moves
        left = Bytes(left - step.cost)
        if planner.largest() > largest:
            largest, worth = planner.largest(), len(moves)
    return tuple(moves[:worth])


class _Planner:
    """A sheet of paper: the holes, and those extents that may be moved, by both of their ends."""

    def __init__(self, holes: Holes, movable: Collection[Extent], overlapping: bool) -> None:
        self._holes, self._overlapping = holes, overlapping
        self._starting = {extent.offset: extent for extent in movable}
        self._ending = {extent.end: extent for extent in movable}

    def largest(self) -> int:
        hole = self._holes.largest()
        return hole.size if hole else 0

    def best(self, limit: int) -> _Step | None:
        """For the largest hole that can be made larger: what yields most."""
        for hole in self._holes.descending():
            steps = [step for step in self._steps(hole, limit) if step.cost <= limit]
            if steps:
                return max(steps, key=lambda step: step.rank)
        return None

    def apply(self, step: _Step) -> None:
        for move in step.moves:
            self._holes.take(move.claimed)
            self._holes.give(move.vacated)
            del self._starting[move.source.offset], self._ending[move.source.end]
            self._starting[move.target.offset] = self._ending[move.target.end] = move.target

    def _steps(self, hole: Hole, limit: int) -> Iterator[_Step]:
        below, above = self._ending.get(hole.offset), self._starting.get(hole.end)
        if below is not None:
            yield from self._send_away(hole, below, self._holes.ending_at(below.offset))
        if above is not None:
            yield from self._send_away(hole, above, self._holes.starting_at(above.end))
        for lower in filter(None, (self._next_below(hole, limit), hole)):
            yield from self._slide(hole, lower, limit)

    def _send_away(self, hole: Hole, extent: Extent, beyond: Hole | None) -> Iterator[_Step]:
        """The hole's neighbour goes into the smallest hole that has room, but none next to it, and no larger one."""
        for refuge in self._holes.ascending(extent.size):
            if refuge.size > hole.size:
                return
            if refuge not in {hole, beyond}:
                gain = extent.size + (beyond.size if beyond else 0)
                yield _Step((Move(extent, Extent(refuge.offset, extent.size)),), gain, extent.size)
                return

    def _slide(self, hole: Hole, lower: Hole, limit: int) -> Iterator[_Step]:
        """All that lies between `lower` and the next hole comes down; one of the two is `hole`."""
        run: list[Extent] = []
        end, cost = lower.end, 0
        while (upper := self._holes.starting_at(end)) is None:
            extent = self._starting.get(end)
            if extent is None or (extent.size > lower.size and not self._overlapping):
                return
            run.append(extent)
            end, cost = extent.end, cost + extent.size
            if cost > limit:
                return
        moves = tuple(Move(extent, Extent(extent.offset - lower.size, extent.size)) for extent in run)
        yield _Step(moves, lower.size + upper.size - hole.size, cost)

    def _next_below(self, hole: Hole, limit: int) -> Hole | None:
        """The next hole below, if all between may be moved."""
        start = hole.offset
        while (lower := self._holes.ending_at(start)) is None:
            extent = self._ending.get(start)
            if extent is None or hole.offset - extent.offset > limit:
                return None
            start = extent.offset
        return lower
