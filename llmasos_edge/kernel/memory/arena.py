"""The arena: a fixed range of bytes handed out as extents, with coalescing on free. The swap file has one too."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.memory.extent import PAGE, Extent, Hole, Move
from llmasos_edge.kernel.memory.fit import FITS
from llmasos_edge.kernel.memory.holes import Holes
from llmasos_edge.kernel.units import Bytes


@dataclass(frozen=True, slots=True)
class ArenaStatistics:
    size: Bytes
    used: Bytes
    extents: int
    holes: int
    largest_hole: Bytes
    fragmentation: float  # external: 1 - largest hole / free bytes


class Arena:
    """Extents over [0, size). Shortage is a value: `allocate` gives None. Not thread-safe."""

    def __init__(self, size: Bytes, fit: str) -> None:
        """`fit` is a name of FITS."""
        self.size: Final = size // PAGE * PAGE
        self.fit: Final = fit
        self._find = FITS[fit]
        self._free = self.size
        self._holes = Holes()
        self._held: dict[int, int] = {}
        self._moving: set[Move] = set()
        if self.size:
            self._holes.add(0, self.size)

    def allocate(self, size: Bytes) -> Extent | None:
        """An extent of at least `size` bytes, rounded up to whole pages; None if no hole is large enough."""
        if size <= 0:
            raise Panic(f"Arena.allocate: {size} bytes")
        wanted = _pages(size)
        hole = self._find(self._holes, wanted)
        if hole is None:
            return None
        extent = Extent(hole.offset, wanted)
        self._cut(hole, extent)
        self._held[extent.offset] = wanted
        return extent

    def can_reserve(self, extent: Extent) -> bool:
        """Whether it is whole pages of the arena, all of them free."""
        whole = extent.offset % PAGE == 0 and extent.size % PAGE == 0
        return whole and extent.size > 0 and self._hole_over(extent) is not None

    def reserve(self, extent: Extent) -> bool:
        """Hold this very extent, which an index says was held; False, and nothing changes, if that can't be."""
        if not self.can_reserve(extent):
            return False
        self._claim(extent)
        self._held[extent.offset] = extent.size
        return True

    def free(self, extent: Extent) -> None:
        """Give an extent back; neighbouring holes become one."""
        self._check_held(extent, "free")
        del self._held[extent.offset]
        self._give(extent)

    def trim(self, extent: Extent, size: Bytes) -> Extent:
        """Give back the end of a held extent; what is left holds at least `size` bytes."""
        self._check_held(extent, "trim")
        if not 0 < size <= extent.size:
            raise Panic(f"Arena.trim: {extent} to {size} bytes")
        kept = Extent(extent.offset, _pages(size))
        if kept != extent:
            self._held[kept.offset] = kept.size
            self._give(Extent(kept.end, extent.end - kept.end))
        return kept

    def can_move(self, move: Move) -> bool:
        """Whether the source is held, and the target free where it is not the source's."""
        same = move.source.size == move.target.size
        return same and self._held.get(move.source.offset) == move.source.size and self.can_reserve(_claimed(move))

    def open_move(self, move: Move) -> None:
        """Hold the target as well while bytes are copied. Until `close_move` neither extent can be freed or trimmed."""
        if not self.can_move(move):
            raise Panic(f"Arena.open_move: {move} can't be")
        self._claim(_claimed(move))
        del self._held[move.source.offset]
        self._moving.add(move)

    def close_move(self, move: Move, *, moved: bool) -> None:
        """Hold the target and give back the source; or, if the bytes were not moved, the other way round."""
        if move not in self._moving:
            raise Panic(f"Arena.close_move: {move} is not open")
        self._moving.remove(move)
        if moved:
            self._held[move.target.offset] = move.target.size
            start = max(move.source.offset, move.target.end) if move.overlaps else move.source.offset
            self._give(Extent(start, move.source.end - start))
        else:
            self._held[move.source.offset] = move.source.size
            self._give(_claimed(move))

    def holes(self) -> Iterator[Hole]:
        """All holes, in address order."""
        return iter(self._holes)

    def largest_hole(self) -> Hole | None:
        return self._holes.largest()

    def extents(self) -> Iterator[Extent]:
        """All held extents that are not being moved, in address order."""
        return (Extent(offset, size) for offset, size in sorted(self._held.items()))

    def statistics(self) -> ArenaStatistics:
        largest = self._holes.largest()
        return ArenaStatistics(
            size=Bytes(self.size),
            used=Bytes(self.size - self._free),
            extents=len(self._held) + len(self._moving),
            holes=len(self._holes),
            largest_hole=Bytes(largest.size if largest else 0),
            fragmentation=1 - largest.size / self._free if largest else 0.0,
        )

    def check_invariants(self) -> None:
        """Held extents and holes tile [0, size) without overlap, and no two holes touch."""
        moving = [each for move in self._moving for each in (move.source, _claimed(move))]
        held = [(extent, True) for extent in (*self.extents(), *moving)]
        at, after_hole = 0, False
        for tile, is_held in sorted([*held, *((hole, False) for hole in self._holes)]):
            if tile.offset != at or tile.size <= 0:
                raise Panic(f"Arena.check_invariants: gap or overlap at {at}")
            if after_hole and not is_held:
                raise Panic(f"Arena.check_invariants: holes touch at {tile.offset}")
            at, after_hole = tile.end, not is_held
        if at != self.size:
            raise Panic(f"Arena.check_invariants: ends at {at} of {self.size}")
        if self._free != sum(hole.size for hole in self._holes):
            raise Panic(f"Arena.check_invariants: {self._free} bytes are not what is free")
        self._holes.check_invariants()

    def _check_held(self, extent: Extent, what: str) -> None:
        if self._held.get(extent.offset) != extent.size:
            raise Panic(f"Arena.{what}: {extent} is not held")

    def _hole_over(self, extent: Extent) -> Hole | None:
        """The hole that has all of the extent."""
        before, after = self._holes.around(extent.offset)
        return next(
            (hole for hole in (before, after) if hole and hole.offset <= extent.offset and extent.end <= hole.end), None
        )

    def _claim(self, extent: Extent) -> None:
        hole = self._hole_over(extent)
        if hole is None:
            raise Panic(f"Arena.reserve: {extent} is not free")
        self._cut(hole, extent)

    def _cut(self, hole: Hole, extent: Extent) -> None:
        """Take the extent out of the hole that has all of it."""
        self._holes.remove(hole)
        if hole.offset < extent.offset:
            self._holes.add(hole.offset, extent.offset - hole.offset)
        if extent.end < hole.end:
            self._holes.add(extent.end, hole.end - extent.end)
        self._free -= extent.size

    def _give(self, extent: Extent) -> None:
        """Make a hole of it, and one hole with its neighbours."""
        start, end = extent.offset, extent.end
        before, after = self._holes.around(start)
        if before and before.end == start:
            self._holes.remove(before)
            start = before.offset
        if after and after.offset == end:
            self._holes.remove(after)
            end = after.end
        self._holes.add(start, end - start)
        self._free += extent.size


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _claimed(move: Move) -> Extent:
    """What of the target is not the source's."""
    return Extent(move.target.offset, move.source.offset - move.target.offset) if move.overlaps else move.target
