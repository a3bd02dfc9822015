"""The arena: a fixed range of bytes handed out as extents, with coalescing on free. The swap file has one too."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.memory.extent import PAGE, Extent, Move
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
        self._holes = Holes()
        self._held: dict[int, int] = {}
        self._moving: set[Move] = set()
        if self.size:
            self._holes.give(Extent(0, self.size))

    def allocate(self, size: Bytes) -> Extent | None:
        """An extent of at least `size` bytes, rounded up to whole pages; None if no hole is large enough."""
        if size <= 0:
            raise Panic(f"Arena.allocate: {size} bytes")
        wanted = _pages(size)
        hole = self._find(self._holes, wanted)
        if hole is None:
            return None
        extent = Extent(hole.offset, wanted)
        self._hold(extent)
        return extent

    def can_reserve(self, extent: Extent) -> bool:
        """Whether it is whole pages of the arena, all of them free."""
        whole = extent.offset % PAGE == 0 and extent.size % PAGE == 0
        return whole and extent.size > 0 and self._holes.over(extent) is not None

    def reserve(self, extent: Extent) -> bool:
        """Hold this very extent, which an index says was held; False, and nothing changes, if that can't be."""
        if not self.can_reserve(extent):
            return False
        self._hold(extent)
        return True

    def free(self, extent: Extent) -> None:
        """Give an extent back; neighbouring holes become one."""
        self._let_go(extent, "free")
        self._holes.give(extent)

    def trim(self, extent: Extent, size: Bytes) -> Extent:
        """Give back the end of a held extent; what is left holds at least `size` bytes."""
        if not 0 < size <= extent.size:
            raise Panic(f"Arena.trim: {extent} to {size} bytes")
        self._let_go(extent, "trim")
        kept = Extent(extent.offset, _pages(size))
        self._held[kept.offset] = kept.size
        if kept != extent:
            self._holes.give(Extent(kept.end, extent.end - kept.end))
        return kept

    # --- moves, for compaction

    def can_move(self, move: Move) -> bool:
        """Whether the source is held, and the target free where it is not the source's."""
        same = move.source.size == move.target.size
        return same and self._held.get(move.source.offset) == move.source.size and self.can_reserve(move.claimed)

    def open_move(self, move: Move) -> None:
        """Hold the target as well while bytes are copied. Until `close_move` neither extent can be freed or trimmed."""
        if not self.can_move(move):
            raise Panic(f"Arena.open_move: {move} can't be")
        self._let_go(move.source, "open_move")
        self._holes.take(move.claimed)
        self._moving.add(move)

    def close_move(self, move: Move, *, moved: bool) -> None:
        """Hold the target and give back the source; or, if the bytes were not moved, the other way round."""
        if move not in self._moving:
            raise Panic(f"Arena.close_move: {move} is not open")
        self._moving.remove(move)
        kept = move.target if moved else move.source
        self._held[kept.offset] = kept.size
        self._holes.give(move.vacated if moved else move.claimed)

    # --- what there is

    def holes(self) -> Holes:
        """All holes, as they are now; changing them changes nothing here."""
        return self._holes.copy()

    def extents(self) -> Iterator[Extent]:
        """All held extents that are not being moved."""
        return (Extent(offset, size) for offset, size in self._held.items())

    def statistics(self) -> ArenaStatistics:
        largest, free = self._holes.largest(), self._holes.free
        return ArenaStatistics(
            size=Bytes(self.size),
            used=Bytes(self.size - free),
            extents=len(self._held) + len(self._moving),
            holes=len(self._holes),
            largest_hole=Bytes(largest.size if largest else 0),
            fragmentation=1 - largest.size / free if largest else 0.0,
        )

    def check_invariants(self) -> None:
        """Held extents and holes tile [0, size) without overlap, and no two holes touch."""
        self._holes.check_invariants()
        moving = (part for move in self._moving for part in (move.source, move.claimed))
        at = 0
        for tile in sorted([*self.extents(), *moving, *self._holes]):
            if tile.offset != at or tile.size <= 0:
                raise Panic(f"Arena.check_invariants: gap or overlap at {at}")
            at = tile.end
        if at != self.size:
            raise Panic(f"Arena.check_invariants: ends at {at} of {self.size}")

    def _hold(self, extent: Extent) -> None:
        self._holes.take(extent)
        self._held[extent.offset] = extent.size

    def _let_go(self, extent: Extent, what: str) -> None:
        if self._held.get(extent.offset) != extent.size:
            raise Panic(f"Arena.{what}: {extent} is not held")
        del self._held[extent.offset]


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
