"""Tests of the task control block: only the moves of the diagram, and the accounting of time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.task import TRANSITIONS, State
from llmasos_edge.kernel.units import Milliseconds, SequenceId, Tokens
from tests.kernel.nodes import tcb


@pytest.mark.parametrize("old", State)
@pytest.mark.parametrize("new", State)
def test_only_transitions_of_the_diagram_happen(old: State, new: State) -> None:
    """Every other move is a broken invariant, and changes nothing."""
    task = tcb(1)
    task.state = old
    if new in TRANSITIONS[old]:
        task.move(new, Milliseconds(5), "why")
        assert (task.state, task.reason) == (new, "why")
    else:
        with pytest.raises(Panic, match=f"from {old.name} to {new.name}"):
            task.move(new, Milliseconds(5))
        assert task.state is old


def test_every_live_state_can_end_and_none_leads_back_from_the_end() -> None:
    """TERMINATED is reached from everywhere, and is final."""
    assert all(State.TERMINATED in TRANSITIONS[state] for state in State if state is not State.TERMINATED)
    assert TRANSITIONS[State.TERMINATED] == frozenset()


@given(st.lists(st.tuples(st.sampled_from(State), st.integers(0, 1000)), max_size=30))
def test_running_time_is_the_time_spent_running(steps: list[tuple[State, int]]) -> None:
    """Whatever the way through the states, running time is the sum of the stays in RUNNING."""
    task, now, expected, first = tcb(1), 0, 0, None
    for state, pause in steps:
        if state not in TRANSITIONS[task.state]:
            continue
        expected += pause if task.state is State.RUNNING else 0
        now += pause
        first = now if state is State.RUNNING and first is None else first
        task.move(state, Milliseconds(now))
        assert task.running_ms(Milliseconds(now)) == expected
    assert task.first_run_ms == first


def test_starting_over_counts_as_an_attempt_only_if_something_was_told() -> None:
    """Text that was streamed makes the next run another attempt; else nobody can tell the difference."""
    task = tcb(1)
    task.sequence, task.arriving, task.computed, task.prepared = SequenceId(3), True, Tokens(7), True
    task.start_over()
    assert (task.attempt, task.prepared, task.computed) == (1, False, 0)
    assert task.sequence is None
    assert not task.arriving
    task.text.append("so far")
    task.generated = Tokens(2)
    task.start_over()
    assert (task.attempt, task.text, task.generated) == (2, [], 0)
