"""Lanes: the tasks of clients that take turns, and which client's comes next. What a step costs hardly grows."""

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from math import inf
from operator import itemgetter
from typing import Any, Final

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import ClientId, TaskId

Rank = tuple[float, ...]  # ends with the task's order: no two are equal
Entry = tuple[Rank, Task]
_rank: Final = itemgetter(0)
_SLACK: Final = 64  # dead entries that are not worth making the heaps anew


def insert(line: list[Entry], rank: Rank, task: Task) -> None:
    insort(line, (rank, task), key=_rank)


def lower(line: list[Entry], rank: Rank) -> int:
    """How many of a sorted line have a lower rank."""
    return bisect_left(line, rank, key=_rank)


@dataclass(slots=True)
class _Lane:
    """A client's tasks by rank, never empty; its counter; and its entry in one of the heaps."""

    served: int
    tasks: list[Entry] = field(default_factory=list)
    entry: tuple[Any, ...] = ()


class Lanes:
    """A client's counter never falls while it waits here: `recount` tells when it has grown.

    Two heaps hold an entry for each client: by what comes first, and, where its counter was found to be beyond the
    limit, by that. An entry may be out of date, and then it is too early: it is put right when it is at the top.
    """

    def __init__(self) -> None:
        self._lanes: Final[dict[ClientId, _Lane]] = {}
        self._levels: Final[dict[int, list[tuple[int, ClientId]]]] = {}  # number of tasks: who has so many, by counter
        self._within: list[tuple[Any, ...]] = []
        self._beyond: list[tuple[Any, ...]] = []

    def __contains__(self, client: ClientId) -> bool:
        return client in self._lanes

    def put(self, rank: Rank, task: Task, served: int) -> None:
        client = task.submission.client
        lane = self._lanes.get(client)
        if lane is None:
            lane = self._lanes[client] = _Lane(served)
        else:
            self._leave_level(client, lane)
        insert(lane.tasks, rank, task)
        self._join_level(client, lane)
        if lane.tasks[0][1] is task:
            self._file(client, lane)

    def remove(self, rank: Rank, task: Task) -> None:
        client = task.submission.client
        lane = self._lanes[client]
        self._leave_level(client, lane)
        del lane.tasks[lower(lane.tasks, rank)]
        if lane.tasks:
            self._join_level(client, lane)
        else:
            del self._lanes[client]

    def recount(self, client: ClientId, served: int) -> None:
        """Of a client that waits here."""
        lane = self._lanes[client]
        if lane.served != served:
            self._leave_level(client, lane)
            lane.served = served
            self._join_level(client, lane)

    def least_served(self) -> int | None:
        """The least counter of those who wait."""
        return min((level[0][0] for level in self._levels.values()), default=None)

    def first(self, limit: float = inf) -> Task | None:
        """The least by rank, where that does not tell by counter, of those whose counter is at most `limit`."""
        while self._beyond and self._beyond[0][0] <= limit:
            entry = heappop(self._beyond)
            if self._is_live(entry):
                self._file(entry[-1], self._lanes[entry[-1]])
        while self._within:
            entry = self._within[0]
            if not self._is_live(entry):
                heappop(self._within)
                continue
            client, lane = entry[-1], self._lanes[entry[-1]]
            if lane.served > limit:
                heappop(self._within)
                lane.entry = (lane.served, client)
                heappush(self._beyond, lane.entry)
            elif entry != (now := _entry(client, lane)):
                lane.entry = now
                heapreplace(self._within, now)
            else:
                return lane.tasks[0][1]
        return None

    def ahead(self, client: ClientId, rank: Rank, served: int) -> int:
        """How many come before a task of the client if clients take turns, the least served first.

        Of each other as many as of its own, and one more of those who were served less.
        """
        lane = self._lanes.get(client)
        mine = lower(lane.tasks, rank) if lane else 0
        total = 0
        for count, level in self._levels.items():
            sooner = bisect_left(level, (served,)) if count > mine else 0
            total += len(level) * min(count, mine) + sooner
        return total

    def _file(self, client: ClientId, lane: _Lane) -> None:
        lane.entry = _entry(client, lane)
        heappush(self._within, lane.entry)
        if len(self._within) + len(self._beyond) > 2 * len(self._lanes) + _SLACK:
            for heap in (self._within, self._beyond):
                heap[:] = [entry for entry in heap if self._is_live(entry)]
                heapify(heap)

    def _is_live(self, entry: tuple[Any, ...]) -> bool:
        lane = self._lanes.get(entry[-1])
        return lane is not None and lane.entry is entry

    def _leave_level(self, client: ClientId, lane: _Lane) -> None:
        level = self._levels[len(lane.tasks)]
        del level[bisect_left(level, (lane.served, client))]
        if not level:
            del self._levels[len(lane.tasks)]

    def _join_level(self, client: ClientId, lane: _Lane) -> None:
        insort(self._levels.setdefault(len(lane.tasks), []), (lane.served, client))

    def check_invariants(self, ranks: Mapping[TaskId, Rank], served: Callable[[ClientId], int]) -> None:
        """`ranks` of the tasks, as they were when they were put here."""
        for client, lane in self._lanes.items():
            if lane.served != served(client):
                raise Panic(f"Lanes.check_invariants: {client} was served {served(client)}, and not {lane.served}")
            if [rank for rank, _ in lane.tasks] != sorted(ranks[task.id] for _, task in lane.tasks) or not lane.tasks:
                raise Panic(f"Lanes.check_invariants: the lane of {client} is out of order")
        levels = sorted((count, *each) for count, level in self._levels.items() for each in level)
        if levels != sorted((len(lane.tasks), lane.served, client) for client, lane in self._lanes.items()):
            raise Panic("Lanes.check_invariants: levels are not what the lanes say")
        entries = [entry for heap in (self._within, self._beyond) for entry in heap if self._is_live(entry)]
        if len(entries) != len(self._lanes):
            raise Panic(f"Lanes.check_invariants: {len(entries)} entries for {len(self._lanes)} clients")


def _entry(client: ClientId, lane: _Lane) -> tuple[Any, ...]:
    """In the heap of those within the limit."""
    rank = lane.tasks[0][0]
    return (*rank[:-1], lane.served, rank[-1], client)
