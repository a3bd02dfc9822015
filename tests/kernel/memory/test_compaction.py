"""Tests of compaction: what is moved, what never is, and that the holes become one."""

import random

from llmasos_edge.kernel.memory.arena import Arena
from llmasos_edge.kernel.memory.compaction import plan
from llmasos_edge.kernel.memory.extent import PAGE, Extent, Move
from llmasos_edge.kernel.units import Bytes

NO_LIMIT = Bytes(1 << 40)


def pages(offset: int, size: int) -> Extent:
    """An extent, in pages."""
    return Extent(offset * PAGE, size * PAGE)


def arena_of(size: int, *held: Extent) -> Arena:
    """An arena of so many pages, with just these extents held."""
    arena = Arena(Bytes(size * PAGE), "first-fit")
    assert all(arena.reserve(extent) for extent in held)
    return arena


def carry_out(arena: Arena, moves: tuple[Move, ...]) -> None:
    """As the kernel does."""
    for move in moves:
        arena.open_move(move)
        arena.close_move(move, moved=True)
        arena.check_invariants()


def test_a_neighbour_goes_where_it_fits() -> None:
    """Its place, and the hole beyond it, join the largest hole."""
    lonely = pages(12, 2)
    arena = arena_of(20, pages(2, 2), pages(4, 3), lonely)
    assert plan(arena, [lonely], NO_LIMIT, overlapping=False) == (Move(lonely, pages(0, 2)),)


def test_what_lies_between_two_holes_slides_down() -> None:
    """Where that may overlap; else only if each extent is no larger than the hole."""
    arena = arena_of(20, pages(1, 4), pages(5, 2))
    movable = list(arena.extents())
    assert plan(arena, movable, NO_LIMIT, overlapping=True) == (
        Move(pages(1, 4), pages(0, 4)),
        Move(pages(5, 2), pages(4, 2)),
    )
    assert plan(arena, movable, NO_LIMIT, overlapping=False) == ()


def test_nothing_is_moved_past_what_is_held() -> None:
    """An extent that is not movable is a wall."""
    held = pages(3, 1)
    arena = arena_of(12, pages(2, 1), held, pages(5, 1))
    for move in (moves := plan(arena, [pages(2, 1), pages(5, 1)], NO_LIMIT, overlapping=True)):
        assert move.source != held
    carry_out(arena, moves)
    assert held in arena.extents()
    assert plan(arena, [], NO_LIMIT, overlapping=True) == ()


def test_nothing_is_moved_that_does_not_make_the_largest_hole_larger() -> None:
    """The largest is walled in; small ones could become one, and nobody would be served."""
    arena = arena_of(16, pages(1, 1), pages(3, 1), pages(15, 1))
    assert plan(arena, [pages(1, 1)], NO_LIMIT, overlapping=True) == ()


def test_a_plan_keeps_to_its_limit() -> None:
    """What would cost more is not begun; of what can be done, the cheapest for its yield comes first."""
    arena = arena_of(40, pages(1, 8), pages(10, 2), pages(30, 2))
    assert plan(arena, list(arena.extents()), Bytes(PAGE), overlapping=True) == ()
    moves = plan(arena, list(arena.extents()), Bytes(2 * PAGE), overlapping=True)
    assert moves == (Move(pages(30, 2), pages(12, 2)),)


def test_in_the_end_there_is_one_hole() -> None:
    """Whatever the arena looks like, if all may be moved, and overlap; each plan makes the largest hole larger."""
    for seed in range(20):
        choose = random.Random(seed)
        arena = Arena(Bytes(512 * PAGE), choose.choice(("first-fit", "best-fit", "worst-fit")))
        extents = [extent for _ in range(64) if (extent := arena.allocate(Bytes(choose.randint(1, 9) * PAGE)))]
        for extent in choose.sample(extents, len(extents) // 2):
            arena.free(extent)
        while moves := plan(arena, list(arena.extents()), NO_LIMIT, overlapping=True):
            before = arena.statistics()
            carry_out(arena, moves)
            assert arena.statistics().fragmentation < before.fragmentation
        assert len(list(arena.holes())) == 1
