"""Shortest job first: by what each task still costs, as predicted; whoever runs is never preempted."""

from collections.abc import Sequence
from typing import ClassVar, Final

from llmasos_edge.kernel.scheduling.lanes import Rank
from llmasos_edge.kernel.scheduling.ready_queue import ReadyQueue
from llmasos_edge.kernel.scheduling.scheduler import Decision, Keep, Room, make_way
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds

PATIENCE: Final = 10  # a task is overtaken for at most so many times what it costs itself


class ShortestJobFirst:
    """Its age counts as well: a task submitted later by PATIENCE times the difference in cost is not let past.
    That does not depend on the time of the decision, so the order of any two waiting tasks never changes.
    """

    by_class: ClassVar[bool] = False
    promises: ClassVar[bool] = False

    def rank(self, task: Task) -> Rank:
        return (task.left_ms + task.submitted_ms / PATIENCE, task.order)

    def next(self, ready: ReadyQueue, running: Sequence[Task], room: Room, now: Milliseconds) -> Decision:
        first = ready.first()
        return make_way(first, (), room) if first else Keep()

    def position(self, task: Task, ready: ReadyQueue, room: Room) -> int:
        return ready.lower_ranks(task)
