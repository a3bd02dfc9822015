"""First come, first served: strictly by submission, and whoever runs is never preempted."""

from collections.abc import Sequence

from llmasos_edge.kernel.scheduling.ready_queue import ReadyQueue
from llmasos_edge.kernel.scheduling.scheduler import Admit, Decision, Keep, Room
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds


class FirstComeFirstServed:
    def next(self, ready: ReadyQueue, running: Sequence[Task], room: Room, now: Milliseconds) -> Decision:
        first = min(ready.heads(), key=lambda task: task.order, default=None)
        return Admit(first.id) if first and room.can_seat(first) else Keep()
