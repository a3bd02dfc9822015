"""First come, first served: strictly by submission, and whoever runs is never preempted."""

from collections.abc import Sequence
from typing import ClassVar

from llmasos_edge.kernel.scheduling.lanes import Rank
from llmasos_edge.kernel.scheduling.ready_queue import ReadyQueue
from llmasos_edge.kernel.scheduling.scheduler import Decision, Keep, Room, make_way
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds


class FirstComeFirstServed:
    by_class: ClassVar[bool] = False
    promises: ClassVar[bool] = False

    def rank(self, task: Task) -> Rank:
        return (task.order,)

    def next(self, ready: ReadyQueue, running: Sequence[Task], room: Room, now: Milliseconds) -> Decision:
        first = ready.first()
        return make_way(first, (), room) if first else Keep()

    def position(self, task: Task, ready: ReadyQueue, room: Room) -> int:
        return ready.lower_ranks(task)
