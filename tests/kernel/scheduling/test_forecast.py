"""Tests of forecasts."""

from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.kernel.scheduling.forecast import Cost, Work, arrival, broken, ends, promised
from llmasos_edge.kernel.units import Milliseconds
from tests.kernel.nodes import tcb

costs = st.lists(st.builds(Cost, st.integers(0, 100).map(float), st.integers(1, 100).map(float)), max_size=12)


def test_on_one_sequence_one_follows_the_other() -> None:
    """Each takes its prompt and its answer."""
    assert ends([Cost(10, 100), Cost(20, 50)], 1) == [110, 180]


def test_beside_each_other_prompts_hold_up_everybody() -> None:
    """Two decode at once; the third takes the place of the one that ends first, and its prompt delays the other."""
    assert ends([Cost(10, 100), Cost(20, 50), Cost(5, 30)], 2) == [135, 80, 115]


@given(given=costs, sequences=st.integers(1, 4))
def test_more_sequences_never_end_the_last_one_later_than_all_in_a_row(given: list[Cost], sequences: int) -> None:
    """Nobody ends before its own work is done, nor after everybody's."""
    forecast = ends(given, sequences)
    everything = sum(cost.total_ms for cost in given)
    assert all(cost.total_ms <= end <= everything for cost, end in zip(given, forecast, strict=True))


def test_who_comes_to_an_empty_model_computes_its_own() -> None:
    """Nobody else is there."""
    assert arrival(Work(10, 5), 0, [], 0, Work(100, 50), 4) == Work(10, 5)


def test_who_waits_begins_when_a_sequence_is_free() -> None:
    """Behind three others on two sequences: one after the first that leaves, the second turn after a typical answer."""
    inside = [Work(7, 30), Work(0, 10)]
    first = arrival(Work(10, 5), 0, inside, 0, Work(100, 50), 2)
    third = arrival(Work(10, 5), 2, inside, 2, Work(100, 50), 2)
    assert first == Work(17, 15)
    assert third == Work(17 + 200, 10 + 50 + 5)


def test_others_hold_up_who_runs_by_their_prompts() -> None:
    """While it generates 110 tokens, the other sequence is taken by two that generate 50, if so many wait."""
    assert arrival(Work(0, 110), None, [Work(0, 10)], 9, Work(20, 50), 2) == Work(2 * 20, 110)
    assert arrival(Work(0, 110), None, [Work(0, 10)], 1, Work(20, 50), 2) == Work(1 * 20, 110)
    assert arrival(Work(0, 110), None, [Work(0, 110)], 9, Work(20, 50), 2) == Work(0, 110)


def test_who_is_broken() -> None:
    """Who could make it, is delayed, and is no longer sure to; not who was late before, nor who is not delayed."""
    now, due = Milliseconds(1000), 2000
    sure = (due - now - 100) / 1.05
    cases = [(500.0, sure + 1, True), (500.0, sure - 1, False), (1001.0, 1500.0, False), (950.0, 950.0, False)]
    tasks = [tcb(number, deadline_at=due) for number in range(len(cases))]
    found = broken(tasks, [before for before, *_ in cases], [after for _, after, _ in cases], now)
    assert found == [task for task, (*_, expected) in zip(tasks, cases, strict=True) if expected]
    assert promised(0) > 0
    assert broken([tcb(1)], [1.0], [9e9], now) == []
