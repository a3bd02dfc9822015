"""Tests of the ready queue: lanes in order of submission, against a plain sorted list."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.scheduling.ready_queue import ReadyQueue
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Milliseconds, Priority
from tests.kernel.nodes import tcb


class ReadyQueueMachine(RuleBasedStateMachine):
    """Tasks come in any order, leave from anywhere, and come back to their old place."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = ReadyQueue()
        self.inside: list[Task] = []
        self.outside: list[Task] = []
        self.made = 0

    @rule(priority=st.sampled_from(Priority))
    def put_new(self, priority: Priority) -> None:
        self.made += 1
        self.inside.append(tcb(self.made, priority))
        self.queue.put(self.inside[-1])

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.inside:
            task = self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1)))
            self.queue.remove(task)
            self.outside.append(task)

    @rule()
    def put_back(self) -> None:
        if self.outside:
            self.inside.append(self.outside.pop(0))
            self.queue.put(self.inside[-1])

    @invariant()
    def ordered(self) -> None:
        self.queue.check_invariants()
        expected = sorted(self.inside, key=lambda task: (-task.priority, task.order))
        assert list(self.queue) == expected
        assert len(self.queue) == len(expected)
        assert [self.queue.position(task) for task in expected] == list(range(len(expected)))
        heads = {task.priority: task for task in reversed(expected)}
        assert self.queue.heads() == [heads[priority] for priority in sorted(heads, reverse=True)]


TestReadyQueue = ReadyQueueMachine.TestCase
TestReadyQueue.settings = settings(max_examples=50, stateful_step_count=30)


def test_a_stranger_in_the_queue_is_noticed() -> None:
    """A task that is no longer READY, or changed its class where it stood, breaks the invariant."""
    queue, task = ReadyQueue(), tcb(1)
    queue.put(task)
    task.priority = Priority.BATCH
    with pytest.raises(Panic, match="lane NORMAL"):
        queue.check_invariants()
    task.priority = Priority.NORMAL
    task.move(State.SUSPENDED, Milliseconds(0))
    with pytest.raises(Panic, match="stranger"):
        queue.check_invariants()
