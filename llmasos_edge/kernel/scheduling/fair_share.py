"""Fair share: the client that was served least comes next, whatever it asks for (VTC: Sheng et al., OSDI 2024)."""

from collections.abc import Sequence
from typing import ClassVar, Final

from llmasos_edge.kernel.scheduling.lanes import Rank
from llmasos_edge.kernel.scheduling.ready_queue import ReadyQueue
from llmasos_edge.kernel.scheduling.scheduler import Decision, Keep, Room, make_way
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds

LEAD: Final = 64  # virtual tokens that a client may be ahead before its tasks have to make way


class FairShare:
    """Who has had its quantum makes way for a client that was served less: first the newest of the most served."""

    by_class: ClassVar[bool] = False
    promises: ClassVar[bool] = False

    def rank(self, task: Task) -> Rank:
        return (task.order,)

    def next(self, ready: ReadyQueue, running: Sequence[Task], room: Room, now: Milliseconds) -> Decision:
        least = ready.turn()
        if least is None:
            return Keep()
        spared = room.served(least.submission.client) + LEAD
        victims = [
            task
            for task in running
            if task.this_run_ms(now) >= room.quantum_ms and room.served(task.submission.client) > spared
        ]
        victims.sort(key=lambda task: (-room.served(task.submission.client), -task.order))
        return make_way(least, victims, room)

    def position(self, task: Task, ready: ReadyQueue, room: Room) -> int:
        return ready.taking_turns(task)
