"""The ready queue of one model: a lane for each class and client, in the order of the policy's ranks."""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import ClientId, Priority, TaskId

Rank = tuple[float, ...]  # ends with the task's order: no two are equal
_Lane = list[tuple[Rank, Task]]


def by_arrival(task: Task) -> Rank:
    return (task.order,)


class ReadyQueue:
    """READY tasks only. What a decision looks at are heads: its cost grows with clients, not with tasks."""

    def __init__(self) -> None:
        self._rank: Callable[[Task], Rank] = by_arrival
        self._lanes: Final[dict[Priority, dict[ClientId, _Lane]]] = {
            priority: {} for priority in sorted(Priority, reverse=True)
        }
        self._ranks: Final[dict[TaskId, Rank]] = {}
        self._waiting: Final[dict[Priority, OrderedDict[TaskId, Task]]] = {each: OrderedDict() for each in Priority}

    def __len__(self) -> int:
        return len(self._ranks)

    def __iter__(self) -> Iterator[Task]:
        """Most urgent class first, by rank within it."""
        for lanes in self._lanes.values():
            yield from (task for _, task in sorted(entry for lane in lanes.values() for entry in lane))

    def order_by(self, rank: Callable[[Task], Rank]) -> None:
        """Ranks come from this policy from now on."""
        if rank == self._rank:
            return
        self._rank = rank
        tasks = [task for waiting in self._waiting.values() for task in waiting.values()]
        for task in tasks:
            self.remove(task)
        for task in tasks:
            self.put(task)

    def put(self, task: Task) -> None:
        """Its rank stays as it is now for as long as it waits."""
        rank = self._rank(task)
        self._ranks[task.id] = rank
        insort(self._lanes[task.priority].setdefault(task.submission.client, []), (rank, task))
        self._waiting[task.priority][task.id] = task

    def remove(self, task: Task) -> None:
        lanes, client = self._lanes[task.priority], task.submission.client
        lane = lanes[client]
        del lane[bisect_left(lane, (self._ranks.pop(task.id),))]
        del self._waiting[task.priority][task.id]
        if not lane:
            del lanes[client]

    def heads(self) -> list[Task]:
        """The first task of each class and client, most urgent class first."""
        return [lane[0][1] for lanes in self._lanes.values() for lane in lanes.values()]

    def first(self) -> Task | None:
        """The least rank of all, whatever its class."""
        entries = (lane[0] for lanes in self._lanes.values() for lane in lanes.values())
        return min(entries, default=(None, None))[1]

    def longest_waiting(self, priority: Priority) -> Task | None:
        """The one of the class that was put here first."""
        return next(iter(self._waiting[priority].values()), None)

    def waiting(self) -> dict[Priority, int]:
        """How many of each class."""
        return {priority: len(tasks) for priority, tasks in self._waiting.items()}

    def clients(self) -> set[ClientId]:
        return {client for lanes in self._lanes.values() for client in lanes}

    def lower_ranks(self, task: Task, *, of_class: Priority | None = None) -> int:
        """How many, of all or of one class, come before it by rank; it need not be here itself."""
        entry = (self._ranks.get(task.id) or self._rank(task),)
        lanes = [lane for each, some in self._lanes.items() if of_class in (None, each) for lane in some.values()]
        return sum(bisect_left(lane, entry) for lane in lanes)

    def above(self, priority: Priority) -> int:
        """How many are of a higher class."""
        return sum(len(tasks) for each, tasks in self._waiting.items() if each > priority)

    def taking_turns(self, task: Task, served: Callable[[ClientId], float], *, of_class: Priority | None = None) -> int:
        """How many come before it if clients take turns, the least served first."""
        client, rank = task.submission.client, (self._ranks.get(task.id) or self._rank(task),)
        chosen = [lanes for each, lanes in self._lanes.items() if of_class in (None, each)]
        mine = sum(bisect_left(lanes[client], rank) for lanes in chosen if client in lanes)
        sooner = {other: served(other) < served(client) for lanes in chosen for other in lanes if other != client}
        counts = {other: sum(len(lanes.get(other, ())) for lanes in chosen) for other in sooner}
        return mine + sum(min(count, mine + sooner[other]) for other, count in counts.items())

    def check_invariants(self) -> None:
        lanes = {(p, client): lane for p, some in self._lanes.items() for client, lane in some.items()}
        for (priority, client), lane in lanes.items():
            for _, task in lane:
                if (task.state, task.priority, task.submission.client) != (State.READY, priority, client):
                    raise Panic(f"ReadyQueue.check_invariants: a stranger in lane {priority.name} of {client}")
            if [rank for rank, _ in lane] != sorted(self._ranks[task.id] for _, task in lane) or not lane:
                raise Panic(f"ReadyQueue.check_invariants: lane {priority.name} of {client} is out of order")
        if not len(self._ranks) == sum(map(len, lanes.values())) == sum(map(len, self._waiting.values())):
            raise Panic(f"ReadyQueue.check_invariants: {len(self._ranks)} ranks, and another number of tasks")
