"""The arena: a fixed range of bytes handed out as extents, with coalescing on free."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.memory.extent import PAGE, Extent, Hole
from llmasos_edge.kernel.memory.fit import FITS
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
        self._holes: dict[int, int] = {0: self.size} if self.size else {}
        self._held: dict[int, int] = {}

    def allocate(self, size: Bytes) -> Extent | None:
        """An extent of at least `size` bytes, rounded up to whole pages; None if no hole is large enough."""
        wanted = -(-size // PAGE) * PAGE
        if wanted <= 0:
            raise Panic(f"Arena.allocate: {size} bytes")
        hole = self._find(self.holes(), wanted)
        if hole is None:
            return None
        del self._holes[hole.offset]
        if hole.size > wanted:
            self._holes[hole.offset + wanted] = hole.size - wanted
        self._held[hole.offset] = wanted
        return Extent(hole.offset, wanted)

    def free(self, extent: Extent) -> None:
        """Give an extent back; neighbouring holes become one."""
        if self._held.pop(extent.offset, None) != extent.size:
            raise Panic(f"Arena.free: {extent} is not held")
        start, end = extent.offset, extent.end
        for hole in self.holes():
            if hole.end == start:
                start = hole.offset
                del self._holes[hole.offset]
            elif hole.offset == end:
                end = hole.end
                del self._holes[hole.offset]
        self._holes[start] = end - start

    def holes(self) -> Iterator[Hole]:
        """All holes, in address order."""
        return (Hole(offset, size) for offset, size in sorted(self._holes.items()))

    def statistics(self) -> ArenaStatistics:
        free = sum(self._holes.values())
        largest = max(self._holes.values(), default=0)
        return ArenaStatistics(
            size=Bytes(self.size),
            used=Bytes(self.size - free),
            extents=len(self._held),
            holes=len(self._holes),
            largest_hole=Bytes(largest),
            fragmentation=1 - largest / free if free else 0.0,
        )

    def check_invariants(self) -> None:
        """Held extents and holes tile [0, size) without overlap, and no two holes touch."""
        tiles = sorted([(o, s, True) for o, s in self._held.items()] + [(o, s, False) for o, s in self._holes.items()])
        at, after_hole = 0, False
        for offset, size, held in tiles:
            if offset != at or size <= 0:
                raise Panic(f"Arena.check_invariants: gap or overlap at {at}")
            if after_hole and not held:
                raise Panic(f"Arena.check_invariants: holes touch at {offset}")
            at, after_hole = offset + size, not held
        if at != self.size:
            raise Panic(f"Arena.check_invariants: ends at {at} of {self.size}")
