"""Tests of the figures: worked out by hand for a few tasks."""

import pytest

from llmasos_edge.kernel.units import Priority
from llmasos_edge.simulate.replay import Life, Replayed, Seat
from llmasos_edge.simulate.statistics import Times, fairness, figures, jain

SECOND = 1000


def life(number: int, submitted: int, ended: int, *, client: str = "a", waiting: int = 0, how: str = "ok") -> Life:
    """Times in seconds."""
    times = (submitted * SECOND, ended * SECOND, waiting * SECOND, 100 if how == "ok" else None)
    return Life(number, client, Priority.NORMAL, *times, preemptions=1, tokens=100, ended=how)


def seat(number: int, began: int, ended: int, client: str = "a") -> Seat:
    return Seat("m", 0, began * SECOND, ended * SECOND, number, client, Priority.NORMAL)


def test_times_are_of_those_that_ended_by_themselves() -> None:
    """The others are counted."""
    lives = [
        life(1, 2, 5, waiting=1),
        life(2, 2, 12, waiting=5),
        life(3, 3, 9, how="deadline_exceeded"),
        life(4, 3, 3, how="unpromised"),
        life(5, 4, 20, how="engine_failed"),
    ]
    found = figures(Replayed("fcfs", lives, [], 1, 2, 3, 4, 5))
    assert found.makespan_ms == 18_000
    assert found.all.turnaround == Times(6500, 10_000)
    assert found.all.waiting == Times(3000, 5000)
    assert found.all.response == Times(100, 100)
    assert (found.all.tasks, found.all.missed, found.all.unpromised, found.all.failed) == (5, 1, 1, 1)
    assert (found.preemptions, found.parked, found.restored) == (5, 1, 2)
    assert (found.swapped_out, found.swapped_in, found.loads) == (3, 4, 5)
    assert list(found.classes) == ["normal"]


def test_the_99th_percentile_is_exceeded_by_one_of_a_hundred() -> None:
    """It is a value that occurred."""
    lives = [life(number, 0, number) for number in range(1, 201)]
    assert figures(Replayed("fcfs", lives, [], 0, 0, 0, 0, 0)).all.turnaround.p99 == 198_000


def test_a_workload_without_tasks_has_no_figures() -> None:
    """And breaks nothing."""
    found = figures(Replayed("fcfs", [], [], 0, 0, 0, 0, 0))
    assert (found.makespan_ms, found.all.turnaround, found.fairness, found.classes) == (0, Times(None, None), None, {})


def test_jains_index() -> None:
    """1 for equals, 1/n where one has all, and 0.9 for 2 to 1."""
    assert jain([7, 7, 7]) == 1
    assert jain([5, 0, 0, 0]) == 0.25
    assert jain([2, 1]) == 0.9


def test_fairness_is_between_clients_that_had_work_all_the_time() -> None:
    """Client a has twice the service of b in the only window that both have work from its beginning to its end."""
    lives = [life(1, 0, 30), life(2, 5, 21, client="b"), life(3, 25, 30, client="c")]
    seats = [seat(1, 0, 30), seat(2, 10, 12, "b"), seat(2, 18, 21, "b"), seat(3, 25, 30, "c")]
    rates = {"a": 100 / 30, "b": 100 / 5}
    assert fairness(lives, seats) == pytest.approx(jain([rates["a"] * 10, rates["b"] * 4]))


def test_tasks_that_follow_each_other_keep_a_client_busy() -> None:
    """A gap between them does not."""
    others = [life(9, 0, 40, client="b"), life(3, 3, 12)]
    seats = [seat(9, 0, 40, "b"), seat(3, 3, 12), seat(4, 12, 25)]
    assert fairness([*others, life(4, 12, 25)], seats) is not None
    assert fairness([*others, life(4, 14, 29)], seats) is None
