"""Round-robin: who has had a quantum goes to the end of the line when others wait."""

from collections.abc import Sequence
from typing import ClassVar

from llmasos_edge.kernel.scheduling.lanes import Rank
from llmasos_edge.kernel.scheduling.ready_queue import ReadyQueue
from llmasos_edge.kernel.scheduling.scheduler import Decision, Keep, Room, make_way
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds


class RoundRobin:
    by_class: ClassVar[bool] = False
    promises: ClassVar[bool] = False

    def rank(self, task: Task) -> Rank:
        return (task.ready_since, task.order)

    def next(self, ready: ReadyQueue, running: Sequence[Task], room: Room, now: Milliseconds) -> Decision:
        first = ready.first()
        if first is None:
            return Keep()
        spent = [task for task in running if task.this_run_ms(now) >= room.quantum_ms]
        return make_way(first, sorted(spent, key=lambda task: -task.this_run_ms(now)), room)

    def position(self, task: Task, ready: ReadyQueue, room: Room) -> int:
        return ready.lower_ranks(task)
