"""The holes of an arena, sorted twice: by address, to coalesce them, and by size, to find one (bisection)."""

from bisect import bisect_left, insort
from collections.abc import Iterator

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.memory.extent import Hole


class Holes:
    """Free ranges, none of which touch, in order of address and in order of size."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._size_at: dict[int, int] = {}
        self._by_size: list[tuple[int, int]] = []  # (size, offset)

    def __iter__(self) -> Iterator[Hole]:
        """In order of address."""
        return (Hole(offset, self._size_at[offset]) for offset in self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, offset: int, size: int) -> None:
        insort(self._starts, offset)
        insort(self._by_size, (size, offset))
        self._size_at[offset] = size

    def remove(self, hole: Hole) -> None:
        del self._starts[bisect_left(self._starts, hole.offset)]
        del self._by_size[bisect_left(self._by_size, (hole.size, hole.offset))]
        del self._size_at[hole.offset]

    def around(self, offset: int) -> tuple[Hole | None, Hole | None]:
        """The last hole that starts before `offset`, and the first that starts there or behind it."""
        at = bisect_left(self._starts, offset)
        before = self._hole(self._starts[at - 1]) if at else None
        after = self._hole(self._starts[at]) if at < len(self._starts) else None
        return before, after

    def first(self, size: int) -> Hole | None:
        """The lowest of at least this size."""
        if not self._by_size or self._by_size[-1][0] < size:
            return None
        return next((self._hole(offset) for offset in self._starts if self._size_at[offset] >= size), None)

    def smallest(self, size: int) -> Hole | None:
        """The smallest of at least this size; the lowest of equals."""
        at = bisect_left(self._by_size, (size, 0))
        return self._hole(self._by_size[at][1]) if at < len(self._by_size) else None

    def largest(self) -> Hole | None:
        """The lowest of equals."""
        return self.smallest(self._by_size[-1][0]) if self._by_size else None

    def check_invariants(self) -> None:
        """Both orders tell the same holes."""
        if self._starts != sorted(self._size_at) or self._by_size != sorted((s, o) for o, s in self._size_at.items()):
            raise Panic("Holes.check_invariants: the orders differ")

    def _hole(self, offset: int) -> Hole:
        return Hole(offset, self._size_at[offset])
