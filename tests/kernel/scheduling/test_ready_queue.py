"""Tests of the ready queue: lanes in the order of a policy's ranks, against a plain sorted list."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.scheduling.ready_queue import Rank, ReadyQueue, by_arrival
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Milliseconds, Priority
from tests.kernel.nodes import tcb


def shortest(task: Task) -> Rank:
    return (task.left_ms, task.order)


class ReadyQueueMachine(RuleBasedStateMachine):
    """Tasks come in any order, leave from anywhere, come back, and the policy changes."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = ReadyQueue()
        self.inside: list[Task] = []
        self.outside: list[Task] = []
        self.made = 0
        self.rank: Callable[[Task], Rank] = by_arrival

    @rule(priority=st.sampled_from(Priority), client=st.sampled_from("abc"), left=st.integers(0, 5))
    def put_new(self, priority: Priority, client: str, left: int) -> None:
        self.made += 1
        self.inside.append(tcb(self.made, priority, client=client, left_ms=left))
        self.queue.put(self.inside[-1])

    @rule(rank=st.sampled_from([by_arrival, shortest]))
    def change_policy(self, rank: Callable[[Task], Rank]) -> None:
        self.queue.order_by(rank)
        self.rank = rank

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
        """`inside` is in the order of putting."""
        self.queue.check_invariants()
        expected = sorted(self.inside, key=lambda task: (-task.priority, self.rank(task)))
        assert list(self.queue) == expected
        assert len(self.queue) == len(expected)
        assert self.queue.first() == min(self.inside, key=self.rank, default=None)
        heads = {(task.priority, task.submission.client): task for task in reversed(expected)}
        assert {task.id for task in self.queue.heads()} == {task.id for task in heads.values()}
        assert [task.priority for task in self.queue.heads()] == sorted((p for p, _ in heads), reverse=True)
        assert self.queue.clients() == {client for _, client in heads}

    @invariant()
    def counted(self) -> None:
        for task in self.inside:
            lower = [each for each in self.inside if self.rank(each) < self.rank(task)]
            same = [each for each in lower if each.priority is task.priority]
            assert self.queue.lower_ranks(task) == len(lower)
            assert self.queue.lower_ranks(task, of_class=task.priority) == len(same)
        for priority in Priority:
            here = [task for task in self.inside if task.priority is priority]
            assert self.queue.longest_waiting(priority) == next(iter(here), None)
            assert self.queue.waiting()[priority] == len(here)
            assert self.queue.above(priority) == sum(task.priority > priority for task in self.inside)


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


def test_turns_of_clients() -> None:
    """Before one's third task come two of each other client, three of those that were served less, and its own two."""
    counters = {"me": 5, "more": 9, "less": 1}
    mine = [tcb(n, client="me") for n in range(3)]
    queue = ReadyQueue()
    for task in [
        *mine,
        *(tcb(10 + n, client="more") for n in range(9)),
        *(tcb(30 + n, client="less") for n in range(9)),
    ]:
        queue.put(task)
    assert queue.taking_turns(mine[2], lambda client: counters[client]) == 2 + 2 + 3
    assert queue.taking_turns(mine[0], lambda client: counters[client]) == 1
    assert queue.taking_turns(tcb(99, client="me"), lambda client: counters[client]) == 3 + 3 + 4
