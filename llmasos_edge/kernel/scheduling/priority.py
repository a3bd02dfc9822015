"""The default: classes, deadlines inside a class, and fairness between clients, with preemption by higher classes."""

from collections.abc import Sequence
from math import inf
from typing import ClassVar, Final

from llmasos_edge.kernel.scheduling.classes import seat
from llmasos_edge.kernel.scheduling.deadline import earliest
from llmasos_edge.kernel.scheduling.ready_queue import Rank, ReadyQueue
from llmasos_edge.kernel.scheduling.scheduler import Decision, Keep, Room
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds

CREDIT: Final = 4096  # virtual tokens that a client may be ahead of the others, and its deadlines still come first


class PriorityClasses:
    """A deadline comes before fairness for as long as its client has not taken much more than its share: so a deadline
    is kept where it can be, and nobody gets more by naming one.
    """

    promises: ClassVar[bool] = False

    def rank(self, task: Task) -> Rank:
        return earliest(task)

    def next(self, ready: ReadyQueue, running: Sequence[Task], room: Room, now: Milliseconds) -> Decision:
        heads = ready.heads()
        if not heads:
            return Keep()
        highest = heads[0].priority
        heads = [task for task in heads if task.priority is highest]
        limit = min(room.served(task.submission.client) for task in heads) + CREDIT

        def order(task: Task) -> tuple[float, int, int]:
            served = room.served(task.submission.client)
            deadline = inf if task.deadline_at is None or served > limit else float(task.deadline_at)
            return deadline, served, task.order

        return seat(min(heads, key=order), ready, running, room, now)

    def position(self, task: Task, ready: ReadyQueue, room: Room) -> int:
        if task.deadline_at is not None:
            return ready.above(task.priority) + ready.lower_ranks(task, of_class=task.priority)
        return ready.above(task.priority) + ready.taking_turns(task, room.served, of_class=task.priority)
