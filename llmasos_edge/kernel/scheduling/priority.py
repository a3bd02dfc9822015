"""The default: classes, deadlines inside a class, and fairness between clients, with preemption by higher classes."""

from collections.abc import Sequence
from typing import ClassVar, Final

from llmasos_edge.kernel.scheduling.classes import seat
from llmasos_edge.kernel.scheduling.deadline import earliest
from llmasos_edge.kernel.scheduling.lanes import Rank
from llmasos_edge.kernel.scheduling.ready_queue import ReadyQueue
from llmasos_edge.kernel.scheduling.scheduler import Decision, Keep, Room
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds

CREDIT: Final = 4096  # virtual tokens that a client may be ahead of the others, and its deadlines still come first


class PriorityClasses:
    """A deadline comes before fairness for as long as its client has not taken much more than its share: so a deadline
    is kept where it can be, and nobody gets more by naming one.
    """

    by_class: ClassVar[bool] = True
    promises: ClassVar[bool] = False

    def rank(self, task: Task) -> Rank:
        return earliest(task)

    def next(self, ready: ReadyQueue, running: Sequence[Task], room: Room, now: Milliseconds) -> Decision:
        task = ready.turn(ahead=CREDIT)
        return seat(task, ready, running, room, now) if task else Keep()

    def position(self, task: Task, ready: ReadyQueue, room: Room) -> int:
        if task.deadline_at is not None:
            return ready.lower_ranks(task)
        return ready.above(task.priority) + ready.taking_turns(task)
