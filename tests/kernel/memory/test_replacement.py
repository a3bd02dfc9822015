"""Tests of replacement: which idle models each policy drops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.kernel.memory.replacement import HALF_LIFE_MS, REPLACEMENTS, Replacement, Resident, Uses, make_room
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId

residents = st.lists(
    st.builds(
        Resident,
        st.integers(0, 10_000).map(lambda n: ModelId(str(n))),
        st.integers(1, 100).map(Bytes),
        st.integers(0, 9).map(Milliseconds),
        st.floats(0, 1000),
        st.floats(0, 10),
        st.integers(0, 9),
        st.booleans(),
    ),
    max_size=6,
    unique_by=(lambda it: it.model, lambda it: it.ring),
)


def resident(name: str, size: int = 10, used: int = 0, **more: float) -> Resident:
    return Resident(ModelId(name), Bytes(size), Milliseconds(used), **more)  # type: ignore[arg-type]


def drop(policy: str, needed: int, *idle: Resident, free: int = 0) -> Replacement | None:
    return REPLACEMENTS[policy](Bytes(needed), Bytes(free), idle)


def victims(*names: str, spared: tuple[str, ...] = ()) -> Replacement:
    return Replacement(tuple(map(ModelId, names)), tuple(map(ModelId, spared)))


def test_lru_drops_who_was_used_longest_ago() -> None:
    """Only as many as are needed."""
    idle = [resident("new", 50, 9), resident("old", 30, 1), resident("middle", 30, 5)]
    assert drop("lru", 50, *idle) == victims("old", "middle")
    assert drop("lru", 10, *idle) == victims("old")


def test_cost_drops_what_is_cheap_to_lose() -> None:
    """Reload time, times uses, a byte; of equals the least recently used."""
    slow, often = resident("slow", load_ms=900, uses=2), resident("often", load_ms=100, uses=50)
    large, never = resident("large", 100, load_ms=900, uses=2), resident("never", load_ms=900)
    assert drop("cost", 10, slow, often, never) == victims("never")
    assert drop("cost", 10, slow, often) == victims("slow")
    assert drop("cost", 10, slow, large) == victims("large")
    assert drop("cost", 10, resident("late", used=2), resident("early", used=1)) == victims("early")


def test_clock_gives_a_second_chance() -> None:
    """The hand starts at the front, and leaves who was used since it last came by, without their mark, at the back."""
    ring = [resident(name, ring=n, referenced=name in "ac") for n, name in enumerate("abcd")]
    assert drop("clock", 10, *ring) == victims("b", spared=("a",))
    assert drop("clock", 20, *ring) == victims("b", "d", spared=("a", "c"))
    assert drop("clock", 30, *ring) == victims("b", "d", "a", spared=("c",))


def test_clock_where_all_were_used_is_first_in_first_out() -> None:
    """The hand goes around once."""
    ring = [resident(name, ring=n, referenced=True) for n, name in enumerate("abc")]
    assert drop("clock", 10, *ring) == victims("a", spared=("b", "c"))


@pytest.mark.parametrize("policy", REPLACEMENTS)
def test_room_that_is_there_costs_nobody_his_place(policy: str) -> None:
    """No victims is an answer; None says that all of them would not be enough."""
    idle = [resident("a", 10, referenced=True)]
    assert drop(policy, 5, *idle, free=5) == Replacement()
    assert drop(policy, 16, *idle, free=5) is None


def test_a_large_victim_makes_small_ones_needless() -> None:
    """Who came first in the order keeps its place where it is not needed."""
    order = [resident("small", 10), resident("large", 60)]
    assert make_room(Bytes(50), Bytes(0), order) == victims("large")
    assert make_room(Bytes(65), Bytes(0), order) == victims("small", "large")


@given(st.sampled_from(sorted(REPLACEMENTS)), st.integers(0, 300), st.integers(0, 100), residents)
def test_victims_make_enough_room_and_none_is_dropped_in_vain(
    policy: str, needed: int, free: int, idle: list[Resident]
) -> None:
    """Without any one of the victims there would not be enough; nobody is dropped and spared."""
    found = drop(policy, needed, *idle, free=free)
    sizes = {each.model: each.bytes for each in idle}
    if found is None:
        assert free + sum(sizes.values()) < needed
        return
    room = free + sum(sizes[name] for name in found.victims)
    assert room >= needed
    assert all(room - sizes[name] < needed for name in found.victims)
    assert not set(found.victims) & set(found.spared)
    assert set(found.spared) <= {each.model for each in idle if each.referenced}


def test_uses_count_half_after_each_half_life() -> None:
    """What was used much, long ago, falls behind what is used now."""
    uses = Uses()
    for _ in range(4):
        uses.add(Milliseconds(0))
    assert uses.count(Milliseconds(0)) == 4
    assert uses.count(Milliseconds(HALF_LIFE_MS)) == 2
    uses.add(Milliseconds(2 * HALF_LIFE_MS))
    assert uses.count(Milliseconds(2 * HALF_LIFE_MS)) == 2
