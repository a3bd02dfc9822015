"""Tests of the ready queue: ranks, lanes and turns of clients, against plain lists that are searched through."""

from collections.abc import Callable
from math import inf
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.scheduling.lanes import Rank
from llmasos_edge.kernel.scheduling.ready_queue import Arrival, Order, ReadyQueue
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import ClientId, Milliseconds, Priority
from tests.kernel.nodes import tcb


class Shortest:
    by_class: ClassVar[bool] = False

    def rank(self, task: Task) -> Rank:
        return (task.left_ms, task.order)


class Classes:
    by_class: ClassVar[bool] = True

    def rank(self, task: Task) -> Rank:
        return (-task.priority, task.left_ms, task.order)


ORDERS: tuple[Order, ...] = (Arrival(), Shortest(), Classes())


class ReadyQueueMachine(RuleBasedStateMachine):
    """Tasks come in any order, leave from anywhere, come back, clients are served, and the policy changes."""

    def __init__(self) -> None:
        super().__init__()
        self.counters = dict.fromkeys(map(ClientId, "abc"), 0)
        self.queue = ReadyQueue(lambda client: self.counters[client])
        self.inside: list[Task] = []
        self.outside: list[Task] = []
        self.made = 0
        self.order: Order = ORDERS[0]
        self.queue.order_by(self.order)

    @rule(priority=st.sampled_from(Priority), client=st.sampled_from("abc"), left=st.integers(0, 5))
    def put_new(self, priority: Priority, client: str, left: int) -> None:
        self.made += 1
        self.inside.append(tcb(self.made, priority, client=client, left_ms=left))
        self.queue.put(self.inside[-1])

    @rule(order=st.sampled_from(ORDERS))
    def change_policy(self, order: Order) -> None:
        self.queue.order_by(order)
        self.order = order

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

    @rule(client=st.sampled_from("abc"), tokens=st.integers(0, 4))
    def serve(self, client: str, tokens: int) -> None:
        self.counters[ClientId(client)] += tokens
        self.queue.recount(ClientId(client))

    def served(self, task: Task) -> int:
        return self.counters[task.submission.client]

    @invariant()
    def ordered(self) -> None:
        """`inside` is in the order of putting."""
        self.queue.check_invariants()
        expected = sorted(self.inside, key=self.order.rank)
        assert list(self.queue) == expected
        assert len(self.queue) == len(expected)
        assert self.queue.first() == next(iter(expected), None)
        for client in self.counters:
            assert self.queue.has(client) == any(task.submission.client == client for task in expected)
        assert self.queue.least_served() == min(map(self.served, expected), default=None)
        for number, task in enumerate(expected):
            assert self.queue.lower_ranks(task) == number

    @invariant()
    def counted(self) -> None:
        for priority in Priority:
            here = [task for task in self.inside if task.priority is priority]
            assert self.queue.longest_waiting(priority) == next(iter(here), None)
            assert self.queue.waiting()[priority] == len(here)
            assert self.queue.above(priority) == sum(task.priority > priority for task in self.inside)

    @invariant()
    def turns_are_taken(self) -> None:
        """Of the most urgent class where the policy goes by it; a client's first task stands for it."""
        highest = max((task.priority for task in self.inside), default=None)
        group = [task for task in self.inside if not self.order.by_class or task.priority is highest]
        heads = {task.submission.client: task for task in sorted(group, key=self.order.rank, reverse=True)}
        least = min(map(self.served, group), default=0)
        for ahead in (0, 2, inf):
            chosen = [task for task in heads.values() if self.served(task) <= least + ahead]
            assert self.queue.turn(ahead) == min(chosen, key=self._turn, default=None)

    def _turn(self, task: Task) -> tuple[float, ...]:
        *rank, order = self.order.rank(task)
        return (*rank, self.served(task), order)

    @invariant()
    def places_in_turns(self) -> None:
        for task in self.inside:
            group = [each for each in self.inside if not self.order.by_class or each.priority is task.priority]
            lanes = {client: [each for each in group if each.submission.client == client] for client in self.counters}
            own = lanes.pop(task.submission.client)
            mine = sum(self.order.rank(each) < self.order.rank(task) for each in own)
            sooner = {client: self.counters[client] < self.served(task) for client in lanes}
            others = sum(min(len(lane), mine + sooner[client]) for client, lane in lanes.items())
            assert self.queue.taking_turns(task) == mine + others


TestReadyQueue = ReadyQueueMachine.TestCase
TestReadyQueue.settings = settings(max_examples=50, stateful_step_count=30)


def counting(counters: dict[str, int]) -> Callable[[ClientId], int]:
    return lambda client: counters.get(client, 0)


def test_a_stranger_in_the_queue_is_noticed() -> None:
    """A task that is no longer READY, or changed its class where it stood, breaks the invariant."""
    queue, task = ReadyQueue(counting({})), tcb(1)
    queue.put(task)
    task.priority = Priority.BATCH
    with pytest.raises(Panic, match="among the NORMAL"):
        queue.check_invariants()
    task.priority = Priority.NORMAL
    task.move(State.SUSPENDED, Milliseconds(0))
    with pytest.raises(Panic, match="stranger"):
        queue.check_invariants()


def test_a_counter_that_nobody_told_of_is_noticed() -> None:
    """The turns of clients would be wrong from then on."""
    counters: dict[str, int] = {}
    queue = ReadyQueue(counting(counters))
    queue.put(tcb(1, client="a"))
    counters["a"] = 5
    with pytest.raises(Panic, match="a was served 5, and not 0"):
        queue.check_invariants()


def test_turns_of_clients() -> None:
    """Before one's third task come two of each other client, three of those that were served less, and its own two."""
    mine = [tcb(n, client="me") for n in range(3)]
    queue = ReadyQueue(counting({"me": 5, "more": 9, "less": 1}))
    for task in [
        *mine,
        *(tcb(10 + n, client="more") for n in range(9)),
        *(tcb(30 + n, client="less") for n in range(9)),
    ]:
        queue.put(task)
    assert queue.taking_turns(mine[2]) == 2 + 2 + 3
    assert queue.taking_turns(mine[0]) == 1
    assert queue.taking_turns(tcb(99, client="me")) == 3 + 3 + 4


def test_what_is_no_longer_true_takes_no_memory() -> None:
    """A task of little hurry that comes and goes a thousand times leaves nothing behind the others."""
    queue = ReadyQueue(counting({}))
    queue.put(tcb(0, client="there"))
    for number in range(1, 1000):
        task = tcb(number, client=f"c{number}")
        queue.put(task)
        queue.remove(task)
    (lanes,) = queue._lanes.values()
    assert len(lanes._within) + len(lanes._beyond) <= 70
