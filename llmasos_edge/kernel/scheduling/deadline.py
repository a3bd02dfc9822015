"""Deadlines: within a class the earliest first (EDF), and a task whose deadline can't be met is refused at once."""

from collections.abc import Sequence
from math import inf
from typing import ClassVar

from llmasos_edge.kernel.scheduling.classes import seat
from llmasos_edge.kernel.scheduling.lanes import Rank
from llmasos_edge.kernel.scheduling.ready_queue import ReadyQueue
from llmasos_edge.kernel.scheduling.scheduler import Decision, Keep, Room
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds


def earliest(task: Task) -> Rank:
    """The highest class first, within it the earliest deadline."""
    return (-task.priority, inf if task.deadline_at is None else task.deadline_at, task.order)


class EarliestDeadlineFirst:
    by_class: ClassVar[bool] = True
    promises: ClassVar[bool] = True

    def rank(self, task: Task) -> Rank:
        return earliest(task)

    def next(self, ready: ReadyQueue, running: Sequence[Task], room: Room, now: Milliseconds) -> Decision:
        first = ready.first()
        return seat(first, ready, running, room, now) if first else Keep()

    def position(self, task: Task, ready: ReadyQueue, room: Room) -> int:
        return ready.lower_ranks(task)
