"""The ready queue of one model: all who wait in the order of the policy's ranks, and a lane for each client."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from math import inf
from typing import ClassVar, Final, Protocol

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.scheduling.lanes import Entry, Lanes, Rank, insert, lower
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import ClientId, Priority, TaskId


class Order(Protocol):
    """A policy (scheduler.py), as far as the queue goes by it."""

    by_class: ClassVar[bool]

    def rank(self, task: Task) -> Rank: ...


class Arrival:
    by_class: ClassVar[bool] = False

    def rank(self, task: Task) -> Rank:
        return (task.order,)


class ReadyQueue:
    """READY tasks only. What is asked of it costs no more than a search, whatever the numbers of tasks and clients."""

    def __init__(self, served: Callable[[ClientId], int]) -> None:
        """`served` gives a client's counter: `recount` tells that it has changed."""
        self._served = served
        self._order: Order = Arrival()
        self._ranks: Final[dict[TaskId, Rank]] = {}
        self._all: Final[list[Entry]] = []
        self._lanes: Final[dict[Priority | None, Lanes]] = {}  # of a class; None: of all
        self._waiting: Final[dict[Priority, OrderedDict[TaskId, Task]]] = {each: OrderedDict() for each in Priority}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Task]:
        """By rank."""
        return (task for _, task in self._all)

    def order_by(self, order: Order) -> None:
        """It goes by this policy from now on."""
        if order is self._order:
            return
        tasks = [task for waiting in self._waiting.values() for task in waiting.values()]
        for task in tasks:
            self.remove(task)
        self._order = order
        self._lanes.clear()
        for task in tasks:
            self.put(task)

    def put(self, task: Task) -> None:
        """Its rank stays as it is now for as long as it waits."""
        rank = self._ranks[task.id] = self._order.rank(task)
        insert(self._all, rank, task)
        client = task.submission.client
        self._lanes.setdefault(self._group(task), Lanes()).put(rank, task, self._served(client))
        self._waiting[task.priority][task.id] = task

    def remove(self, task: Task) -> None:
        rank = self._ranks.pop(task.id)
        del self._all[lower(self._all, rank)]
        self._lanes[self._group(task)].remove(rank, task)
        del self._waiting[task.priority][task.id]

    def _group(self, task: Task) -> Priority | None:
        return task.priority if self._order.by_class else None

    def recount(self, client: ClientId) -> None:
        """The client's counter has grown."""
        for lanes in self._lanes.values():
            if client in lanes:
                lanes.recount(client, self._served(client))

    def first(self) -> Task | None:
        """The least rank of all."""
        return self._all[0][1] if self._all else None

    def turn(self, ahead: float = inf) -> Task | None:
        """The first task by rank, where that does not tell by counter, that a client has in the most urgent class.

        (Of all, where clients take turns whatever the class.) Only clients whose counters are at most `ahead` more
        than the least of those who wait there.
        """
        if not self._all:
            return None
        lanes = self._lanes[self._group(self._all[0][1])]
        return lanes.first((lanes.least_served() or 0) + ahead)

    def longest_waiting(self, priority: Priority) -> Task | None:
        """The one of the class that was put here first."""
        return next(iter(self._waiting[priority].values()), None)

    def waiting(self) -> dict[Priority, int]:
        """How many of each class."""
        return {priority: len(tasks) for priority, tasks in self._waiting.items()}

    def has(self, client: ClientId) -> bool:
        """The client waits."""
        return any(client in lanes for lanes in self._lanes.values())

    def least_served(self) -> int | None:
        """The least counter of the clients that wait."""
        counters = (lanes.least_served() for lanes in self._lanes.values())
        return min((counter for counter in counters if counter is not None), default=None)

    def lower_ranks(self, task: Task) -> int:
        """How many come before it by rank; it need not be here itself."""
        return lower(self._all, self._rank_of(task))

    def above(self, priority: Priority) -> int:
        """How many are of a higher class."""
        return sum(len(tasks) for each, tasks in self._waiting.items() if each > priority)

    def taking_turns(self, task: Task) -> int:
        """How many of its group come before it if clients take turns, the least served first."""
        lanes, client = self._lanes.get(self._group(task)), task.submission.client
        return lanes.ahead(client, self._rank_of(task), self._served(client)) if lanes else 0

    def _rank_of(self, task: Task) -> Rank:
        return self._ranks.get(task.id) or self._order.rank(task)

    def check_invariants(self) -> None:
        for priority, waiting in self._waiting.items():
            for task in waiting.values():
                if (task.state, task.priority) != (State.READY, priority):
                    raise Panic(f"ReadyQueue.check_invariants: a stranger among the {priority.name}: {task.id}")
        if [rank for rank, _ in self._all] != sorted(self._ranks[task.id] for _, task in self._all):
            raise Panic("ReadyQueue.check_invariants: the tasks are out of order")
        if not len(self._ranks) == len(self._all) == sum(map(len, self._waiting.values())):
            raise Panic(f"ReadyQueue.check_invariants: {len(self._ranks)} ranks, and another number of tasks")
        for lanes in self._lanes.values():
            lanes.check_invariants(self._ranks, self._served)
