"""Tests of the task table: ids, reaping, and how long the dead are remembered."""

import pytest

from llmasos_edge.errors import Panic, UnknownTask
from llmasos_edge.kernel.task import Outcome, State, Submission, Task
from llmasos_edge.kernel.task_table import REMEMBERED, TaskTable
from llmasos_edge.kernel.units import ClientId, Milliseconds, TaskId
from tests.kernel.nodes import M

NOW = Milliseconds(7)


def submission(task: str | None = None, deadline: int | None = None, attempt: int = 1) -> Submission:
    return Submission(
        ClientId("c"),
        M,
        None,
        deadline_ms=None if deadline is None else Milliseconds(deadline),
        task=None if task is None else TaskId(task),
        attempt=attempt,
    )


def end(table: TaskTable, task: Task) -> None:
    task.outcome = Outcome("stop")
    task.move(State.TERMINATED, NOW)
    table.reap(task)


def test_ids_carry_the_boot_unless_the_caller_numbers_its_tasks() -> None:
    """An id is unique over restarts; one that is given is kept, with its attempt and its deadline from now."""
    table = TaskTable(boot=3)
    assert [table.make(submission(), NOW).id for _ in range(2)] == ["3-1", "3-2"]
    again = table.make(submission("2-9", deadline=100, attempt=2), NOW)
    assert (again.id, again.attempt, again.deadline_at) == ("2-9", 2, 107)
    assert table.get(TaskId("2-9")) is again
    table.check_invariants()


def test_one_id_twice_is_a_panic() -> None:
    """Callers tell duplicates apart before they come here."""
    table = TaskTable(boot=1)
    table.make(submission("a"), NOW)
    with pytest.raises(Panic, match="a is there already"):
        table.make(submission("a"), NOW)


def test_the_live_are_never_forgotten_and_the_dead_after_a_while() -> None:
    """The table keeps the last REMEMBERED ended tasks, and every live one."""
    table = TaskTable(boot=1)
    live = table.make(submission(), NOW)
    dead = [table.make(submission(), NOW) for _ in range(REMEMBERED + 5)]
    for task in dead:
        end(table, task)
        table.check_invariants()
    assert table.live_count == 1
    assert list(table.live()) == [live]
    assert table.find(dead[4].id) is None
    assert table.find(dead[5].id) is dead[5]
    with pytest.raises(UnknownTask):
        table.get(dead[0].id)


def test_only_the_dead_are_reaped() -> None:
    """A live task has no outcome to remember."""
    table = TaskTable(boot=1)
    task = table.make(submission(), NOW)
    with pytest.raises(Panic, match="is NEW"):
        table.reap(task)


def test_an_outcome_without_an_end_is_noticed() -> None:
    """The table's invariants see a task control block that contradicts itself."""
    table = TaskTable(boot=1)
    table.make(submission(), NOW).outcome = Outcome("stop")
    with pytest.raises(Panic, match="outcome"):
        table.check_invariants()
