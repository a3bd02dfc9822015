"""Tests of the tasks that are not READY yet."""

import pytest

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.newcomers import Newcomers
from llmasos_edge.kernel.units import Priority
from tests.kernel.nodes import tcb


def test_who_waits_is_counted_with_who_is_prepared() -> None:
    """By age, whatever the order of coming, and by class; and leaves from anywhere."""
    newcomers, tasks = Newcomers(), [tcb(order, Priority.BATCH) for order in (3, 1, 2)]
    for task in tasks[:2]:
        newcomers.wait(task)
    newcomers.prepare(tasks[2])
    assert [newcomers.older_than(task) for task in tasks] == [2, 0, 1]
    assert newcomers.classes() == {Priority.BATCH}
    newcomers.renice(tasks[0], Priority.NORMAL)
    tasks[0].priority = Priority.NORMAL
    newcomers.check_invariants()
    assert newcomers.classes() == {Priority.BATCH, Priority.NORMAL}
    assert newcomers.leave(tasks[1])
    assert not newcomers.leave(tasks[2])
    assert newcomers.stop_preparing(tasks[2])
    assert newcomers.classes() == {Priority.NORMAL}
    assert newcomers.leave(tasks[0])
    assert not newcomers


def test_a_class_that_changed_unheard_is_noticed() -> None:
    """The model's urgency would be wrong."""
    newcomers, task = Newcomers(), tcb(1)
    newcomers.wait(task)
    task.priority = Priority.BATCH
    with pytest.raises(Panic, match="check_invariants"):
        newcomers.check_invariants()
