"""Tests of the arena: a state machine over every fit, against a plain model of held bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.memory.arena import Arena
from llmasos_edge.kernel.memory.extent import PAGE, Extent
from llmasos_edge.kernel.memory.fit import FITS
from llmasos_edge.kernel.units import Bytes

SIZE = 64 * PAGE


class ArenaMachine(RuleBasedStateMachine):
    """Allocates and frees at random; the arena must agree with the list of what is held."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(Bytes(SIZE), "first-fit")
        self.held: list[Extent] = []

    @initialize(fit=st.sampled_from(sorted(FITS)))
    def choose(self, fit: str) -> None:
        self.arena = Arena(Bytes(SIZE), fit)

    @rule(size=st.integers(1, SIZE))
    def allocate(self, size: int) -> None:
        largest = self.arena.statistics().largest_hole
        extent = self.arena.allocate(Bytes(size))
        pages = -(-size // PAGE) * PAGE
        assert (extent is None) == (pages > largest)
        if extent is not None:
            assert extent.size == pages
            self.held.append(extent)

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        if self.held:
            self.arena.free(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @invariant()
    def whole(self) -> None:
        self.arena.check_invariants()
        statistics = self.arena.statistics()
        assert statistics.used == sum(extent.size for extent in self.held)
        assert statistics.extents == len(self.held)
        assert sum(hole.size for hole in self.arena.holes()) == SIZE - statistics.used
        assert 0 <= statistics.fragmentation < 1
        assert all(
            one.end <= other.offset or other.end <= one.offset
            for one in self.held
            for other in self.held
            if one is not other
        )

    def teardown(self) -> None:
        for extent in self.held:
            self.arena.free(extent)
        assert list(self.arena.holes()) == [Extent(0, SIZE)]


TestArena = ArenaMachine.TestCase
TestArena.settings = settings(max_examples=50, stateful_step_count=30)


def test_neighbours_are_coalesced_on_both_sides() -> None:
    """Freeing the middle of three makes one hole of all."""
    arena = Arena(Bytes(3 * PAGE), "first-fit")
    extents = [arena.allocate(Bytes(PAGE)) for _ in range(3)]
    for which in (0, 2, 1):
        extent = extents[which]
        assert extent is not None
        arena.free(extent)
    assert list(arena.holes()) == [Extent(0, 3 * PAGE)]


def test_freeing_twice_is_a_panic() -> None:
    """So is an extent that was never given out."""
    arena = Arena(Bytes(4 * PAGE), "best-fit")
    extent = arena.allocate(Bytes(1))
    assert extent is not None
    arena.free(extent)
    for stranger in (extent, Extent(PAGE, PAGE)):
        with pytest.raises(Panic, match="is not held"):
            arena.free(stranger)


@given(st.integers(max_value=0))
def test_nothing_is_not_an_extent(size: int) -> None:
    """An allocation of no bytes is a bug of its caller."""
    with pytest.raises(Panic, match="bytes"):
        Arena(Bytes(PAGE), "first-fit").allocate(Bytes(size))


def test_an_arena_smaller_than_a_page_has_no_room() -> None:
    """Shortage is a value."""
    arena = Arena(Bytes(PAGE - 1), "worst-fit")
    assert arena.allocate(Bytes(1)) is None
    arena.check_invariants()
