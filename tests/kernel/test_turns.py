"""Tests of turns: one line a session, against a plain list of lists."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.turns import Turns
from llmasos_edge.kernel.units import SessionId
from tests.kernel.nodes import tcb


def turn(order: int, session: str | None) -> Task:
    task = tcb(order)
    task.submission = replace(task.submission, session=None if session is None else SessionId(session))
    return task


@given(st.lists(st.tuples(st.sampled_from([None, "s", "t"]), st.integers(0, 5)), max_size=30))
def test_the_first_of_each_line_may_go(steps: list[tuple[str | None, int]]) -> None:
    """Whoever leaves from wherever, the order stays, and exactly one task hears that its turn has come."""
    turns, lines = Turns(), dict[str | None, list[Task]]()
    for order, (session, leaving) in enumerate(steps):
        task = turn(order, session)
        turns.enter(task)
        line = lines.setdefault(session, [])
        line.append(task)
        if leaving < len(line):
            gone = line.pop(leaving)
            follows = session is not None and leaving == 0 and line
            assert turns.leave(gone) is (line[0] if follows else None)
        for of, waiting in lines.items():
            assert [turns.is_first(each) for each in waiting] == [of is None or n == 0 for n in range(len(waiting))]
