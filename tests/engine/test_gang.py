"""Tests of the gang: who waits for a core is left out, and tried again."""

from itertools import pairwise

import pytest

from llmasos_edge.engine.gang import RETRY_S, WINDOW_S, Gang, waits


class Machine:
    """A clock and threads that wait: steps of a window each, in which every thread waits for `share` of the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waited = dict.fromkeys(range(4), 0)
        self.looks = 0
        self.gang = Gang(self.look, lambda: self.now)

    def look(self) -> dict[int, int]:
        self.looks += 1
        return dict(self.waited)

    def step(self, granted: int, share: float, seconds: float = WINDOW_S) -> int:
        threads = self.gang.threads(granted)
        self.now += seconds
        for thread in range(threads):
            self.waited[thread] += int(share * seconds * 1e9)
        self.gang.ran(seconds, granted)
        return threads


def test_alone_all_threads_take_part() -> None:
    """Who does not wait is never left out, and is looked at once a window, not each step."""
    machine = Machine()
    assert {machine.step(4, 0.02, seconds=WINDOW_S / 10) for _ in range(100)} == {4}
    assert machine.looks <= 12


def test_threads_are_left_out_one_by_one_down_to_one() -> None:
    """While together they wait for more than half a core; a single one has nobody to hold up."""
    machine = Machine()
    assert [machine.step(3, 0.4) for _ in range(6)] == [3, 2, 1, 1, 1, 1]


def test_a_little_waiting_is_borne() -> None:
    """Two threads that wait a fifth of the time are still faster than one."""
    machine = Machine()
    assert {machine.step(2, 0.2) for _ in range(20)} == {2}


def test_who_was_left_out_is_tried_again_ever_less_often() -> None:
    """One disturbed window after each pause, and each pause is twice as long; at rest all take part again at once."""
    machine = Machine()
    tries = [machine.now for _ in range(400) if machine.step(2, 0.5) == 2]
    for pause, (earlier, later) in zip((1, 2, 4, 8, 16, 16), pairwise(tries), strict=False):
        assert pause * RETRY_S <= later - earlier <= pause * RETRY_S + 2 * WINDOW_S
    assert len(tries) > 6
    while machine.step(2, 0.0) == 1:
        pass
    machine.step(2, 0.0)
    assert [machine.step(2, 0.5), machine.step(2, 0.0)] == [2, 1]
    assert sum(machine.step(2, 0.0) == 1 for _ in range(40)) == pytest.approx(RETRY_S / WINDOW_S, abs=1.5)


def test_fewer_granted_threads_are_kept_to() -> None:
    """The kernel's grant is the most that a gang may have."""
    machine = Machine()
    machine.step(4, 0.5)
    assert machine.step(2, 0.0) == 1
    assert machine.step(1, 0.0) == 1


def test_a_machine_that_does_not_count_is_not_second_guessed() -> None:
    """Without schedstat nobody is left out."""
    gang = Gang(dict, lambda: 0.0)
    for _ in range(10):
        gang.ran(WINDOW_S, 2)
    assert gang.threads(2) == 2


def test_this_machine_counts() -> None:
    """The main thread is among those that compute."""
    assert waits()
