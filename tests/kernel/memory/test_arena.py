"""Tests of the arena: a state machine over every fit, against a plain model of the memory."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.memory.arena import Arena
from llmasos_edge.kernel.memory.compaction import plan
from llmasos_edge.kernel.memory.extent import PAGE, Extent, Move
from llmasos_edge.kernel.memory.fit import FITS
from llmasos_edge.kernel.units import Bytes

SIZE = 64 * PAGE


class ArenaMachine(RuleBasedStateMachine):
    """Every operation at random; the arena must agree with a list of what is held, and moves must keep what is there.

    `pages` is the memory: each page of a held extent has that extent's number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(Bytes(SIZE), "first-fit")
        self.held: dict[int, Extent] = {}
        self.pages = [0] * (SIZE // PAGE)
        self.last = 0
        self.open: list[tuple[int, Move]] = []

    @initialize(fit=st.sampled_from(sorted(FITS)))
    def choose(self, fit: str) -> None:
        self.arena = Arena(Bytes(SIZE), fit)

    def hold(self, extent: Extent) -> None:
        """Note an extent, and fill it."""
        self.last += 1
        self.held[self.last] = extent
        self.pages[extent.offset // PAGE : extent.end // PAGE] = [self.last] * (extent.size // PAGE)

    def pick(self, data: st.DataObject) -> int:
        """One of those that are held."""
        return data.draw(st.sampled_from(sorted(self.held)))

    @rule(size=st.integers(1, SIZE // 4))
    def allocate(self, size: int) -> None:
        largest = self.arena.statistics().largest_hole
        extent = self.arena.allocate(Bytes(size))
        pages = -(-size // PAGE) * PAGE
        assert (extent is None) == (pages > largest)
        if extent is not None:
            assert extent.size == pages
            self.hold(extent)

    @rule(page=st.integers(0, SIZE // PAGE), pages=st.integers(1, 8))
    def reserve(self, page: int, pages: int) -> None:
        extent = Extent(page * PAGE, pages * PAGE)
        moving = [part for _, move in self.open for part in (move.source, move.target)]
        free = extent.end <= SIZE and all(
            extent.end <= other.offset or other.end <= extent.offset for other in (*self.held.values(), *moving)
        )
        assert self.arena.reserve(extent) == free
        if free:
            self.hold(extent)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.arena.free(self.held.pop(self.pick(data)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        number = self.pick(data)
        size = data.draw(st.integers(1, self.held[number].size))
        kept = self.arena.trim(self.held[number], Bytes(size))
        assert kept == Extent(self.held[number].offset, -(-size // PAGE) * PAGE)
        self.held[number] = kept

    @rule(data=st.data(), limit=st.integers(1, 2 * SIZE), overlapping=st.booleans())
    def compact(self, data: st.DataObject, limit: int, overlapping: bool) -> None:
        """With some of what is held not to be moved, and some of the plan carried out, the last move perhaps not."""
        movable = {number: self.held[number] for number in self.held if data.draw(st.booleans())}
        moves = plan(self.arena, movable.values(), Bytes(limit), overlapping=overlapping)
        before = self.arena.statistics().fragmentation
        assert sum(move.source.size for move in moves) <= limit
        for move in moves:
            assert overlapping or not move.overlaps
            (number,) = [each for each, extent in self.held.items() if extent == move.source and each in movable]
            self.arena.open_move(move)
            del self.held[number]
            self.open.append((number, move))
            if data.draw(st.booleans()):
                return  # while it is copied, other things happen
            self.close(moved=True)
        assert not moves or self.open or self.arena.statistics().fragmentation < before

    @precondition(lambda self: self.open)
    @rule(moved=st.booleans())
    def close(self, moved: bool) -> None:
        number, move = self.open.pop()
        if moved:
            for at in range(0, move.source.size, PAGE):
                self.pages[(move.target.offset + at) // PAGE] = self.pages[(move.source.offset + at) // PAGE]
        self.arena.close_move(move, moved=moved)
        self.held[number] = move.target if moved else move.source

    @invariant()
    def whole(self) -> None:
        self.arena.check_invariants()
        statistics = self.arena.statistics()
        moving = sum(move.source.size + move.claimed.size for _, move in self.open)
        assert statistics.used == sum(extent.size for extent in self.held.values()) + moving
        assert statistics.extents == len(self.held) + len(self.open)
        assert 0 <= statistics.fragmentation < 1
        assert set(self.arena.extents()) == set(self.held.values())
        for number, extent in self.held.items():
            assert set(self.pages[extent.offset // PAGE : extent.end // PAGE]) == {number}

    def teardown(self) -> None:
        while self.open:
            self.close(moved=False)
        for extent in self.held.values():
            self.arena.free(extent)
        assert list(self.arena.holes()) == [Extent(0, SIZE)]


TestArena = ArenaMachine.TestCase
TestArena.settings = settings(max_examples=100, stateful_step_count=40)


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


def test_what_an_index_says_wrongly_is_not_reserved() -> None:
    """Outside, across the end, not whole pages, nothing, or held already: False, and nothing changes."""
    arena = Arena(Bytes(4 * PAGE), "first-fit")
    assert arena.reserve(Extent(PAGE, PAGE))
    for wrong in (
        *(Extent(4 * PAGE, PAGE), Extent(3 * PAGE, 2 * PAGE), Extent(-PAGE, PAGE), Extent(2 * PAGE, 0)),
        *(Extent(2 * PAGE + 1, PAGE), Extent(2 * PAGE, 100), Extent(PAGE, PAGE), Extent(0, 2 * PAGE)),
    ):
        assert not arena.reserve(wrong)
    assert arena.statistics().used == PAGE
    arena.check_invariants()


def test_a_trim_can_not_make_an_extent_larger_or_nothing() -> None:
    """Both are bugs of the caller."""
    arena = Arena(Bytes(4 * PAGE), "first-fit")
    extent = arena.allocate(Bytes(2 * PAGE))
    assert extent is not None
    for size in (0, 2 * PAGE + 1):
        with pytest.raises(Panic, match=r"Arena\.trim"):
            arena.trim(extent, Bytes(size))
    assert list(arena.extents()) == [extent]


def test_what_moves_is_neither_freed_nor_moved_again() -> None:
    """Until the move is closed, and only once."""
    arena = Arena(Bytes(4 * PAGE), "first-fit")
    low, high = arena.allocate(Bytes(PAGE)), arena.allocate(Bytes(PAGE))
    assert low is not None
    assert high is not None
    arena.free(low)
    move = Move(high, low)
    arena.open_move(move)
    assert not arena.can_move(move)
    for extent in (low, high):
        with pytest.raises(Panic, match="not held"):
            arena.free(extent)
    with pytest.raises(Panic, match="can't be"):
        arena.open_move(move)
    arena.close_move(move, moved=True)
    with pytest.raises(Panic, match="not open"):
        arena.close_move(move, moved=True)
    assert list(arena.holes()) == [Extent(PAGE, 3 * PAGE)]
