"""The holes of an arena, in two orders: by address, to coalesce them, and by size, to find one (each by bisection)."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Final

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.memory.extent import Extent, Hole


class Holes:
    """Free ranges, none of which touch another. `free` is the sum of their sizes."""

    def __init__(self) -> None:
        self.free = 0
        self._starts: Final[list[int]] = []
        self._by_size: Final[list[tuple[int, int]]] = []  # (size, offset)
        self._size_at: Final[dict[int, int]] = {}

    def __iter__(self) -> Iterator[Hole]:
        """In order of address."""
        return (Hole(offset, self._size_at[offset]) for offset in self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def copy(self) -> "Holes":
        other = Holes()
        other.free = self.free
        other._starts.extend(self._starts)
        other._by_size.extend(self._by_size)
        other._size_at.update(self._size_at)
        return other

    # --- which one

    def over(self, extent: Extent) -> Hole | None:
        """The hole that has all of the extent."""
        at = bisect_left(self._starts, extent.offset + 1) - 1
        hole = self._at(at) if at >= 0 else None
        return hole if hole is not None and hole.end >= extent.end else None

    def starting_at(self, offset: int) -> Hole | None:
        size = self._size_at.get(offset)
        return None if size is None else Hole(offset, size)

    def ending_at(self, end: int) -> Hole | None:
        at = bisect_left(self._starts, end) - 1
        hole = self._at(at) if at >= 0 else None
        return hole if hole is not None and hole.end == end else None

    def first(self, size: int) -> Hole | None:
        """The lowest of at least this size."""
        if not self._by_size or self._by_size[-1][0] < size:
            return None
        sizes = self._size_at
        return next((Hole(offset, sizes[offset]) for offset in self._starts if sizes[offset] >= size), None)

    def ascending(self, size: int) -> Iterator[Hole]:
        """Those of at least this size: the smallest first, and the lowest of equals."""
        start = bisect_left(self._by_size, (size, 0))
        return (Hole(offset, size) for size, offset in (self._by_size[at] for at in range(start, len(self._by_size))))

    def smallest(self, size: int) -> Hole | None:
        """The smallest of at least this size; the lowest of equals."""
        at = bisect_left(self._by_size, (size, 0))
        return Hole(self._by_size[at][1], self._by_size[at][0]) if at < len(self._by_size) else None

    def largest(self) -> Hole | None:
        """The lowest of equals."""
        return self.smallest(self._by_size[-1][0]) if self._by_size else None

    def descending(self) -> Iterator[Hole]:
        """The largest first."""
        return (Hole(offset, size) for size, offset in reversed(self._by_size))

    # --- changes

    def take(self, extent: Extent) -> None:
        """Cut the extent out of the hole that has all of it."""
        hole = self.over(extent)
        if hole is None:
            raise Panic(f"Holes.take: {extent} is not free")
        self._remove(hole)
        self._add(hole.offset, extent.offset)
        self._add(extent.end, hole.end)

    def give(self, extent: Extent) -> None:
        """Make a hole of it, and one with its neighbours."""
        before, after = self.ending_at(extent.offset), self.starting_at(extent.end)
        for neighbour in filter(None, (before, after)):
            self._remove(neighbour)
        self._add(before.offset if before else extent.offset, after.end if after else extent.end)

    def check_invariants(self) -> None:
        """Both orders tell the same holes, and no two touch."""
        if self._starts != sorted(self._size_at) or self._by_size != sorted((s, o) for o, s in self._size_at.items()):
            raise Panic("Holes.check_invariants: the orders differ")
        if self.free != sum(self._size_at.values()):
            raise Panic(f"Holes.check_invariants: {self.free} bytes are not what is free")
        if any(offset + size in self._size_at for offset, size in self._size_at.items()):
            raise Panic("Holes.check_invariants: two touch")

    def _at(self, index: int) -> Hole:
        offset = self._starts[index]
        return Hole(offset, self._size_at[offset])

    def _add(self, start: int, end: int) -> None:
        if end > start:
            insort(self._starts, start)
            insort(self._by_size, (end - start, start))
            self._size_at[start] = end - start
            self.free += end - start

    def _remove(self, hole: Hole) -> None:
        del self._starts[bisect_left(self._starts, hole.offset)]
        del self._by_size[bisect_left(self._by_size, (hole.size, hole.offset))]
        del self._size_at[hole.offset]
        self.free -= hole.size
