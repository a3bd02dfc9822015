"""Tests of residency: which idle models make room."""

from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.kernel.memory.residency import Resident, choose_victims
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId

residents = st.lists(
    st.builds(
        Resident,
        st.integers(0, 10_000).map(lambda n: ModelId(str(n))),
        st.integers(1, 100).map(Bytes),
        st.integers(0, 9).map(Milliseconds),
    ),
    max_size=6,
    unique_by=lambda resident: resident.model,
)


def resident(name: str, size: int, used: int) -> Resident:
    return Resident(ModelId(name), Bytes(size), Milliseconds(used))


def test_the_least_recently_used_go_first() -> None:
    """Only as many as are needed."""
    idle = [resident("new", 50, 9), resident("old", 30, 1), resident("middle", 30, 5)]
    assert choose_victims(Bytes(50), Bytes(0), idle) == ("old", "middle")
    assert choose_victims(Bytes(10), Bytes(0), idle) == ("old",)


def test_room_that_is_there_costs_nobody_his_place() -> None:
    """() is an answer; None says that all of them would not be enough."""
    idle = [resident("a", 10, 1)]
    assert choose_victims(Bytes(5), Bytes(5), idle) == ()
    assert choose_victims(Bytes(16), Bytes(5), idle) is None


@given(st.integers(0, 300), st.integers(0, 100), residents)
def test_victims_make_enough_room_and_none_is_dropped_in_vain(needed: int, free: int, idle: list[Resident]) -> None:
    """Without the last victim there would not be enough."""
    victims = choose_victims(Bytes(needed), Bytes(free), idle)
    sizes = {each.model: each.bytes for each in idle}
    if victims is None:
        assert free + sum(sizes.values()) < needed
        return
    room = free + sum(sizes[name] for name in victims)
    assert room >= needed
    assert not victims or room - sizes[victims[-1]] < needed
