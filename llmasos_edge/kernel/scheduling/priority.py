"""Priority classes with preemption and aging: a strictly higher class takes the newest task of the lowest."""

from collections.abc import Sequence
from typing import Final

from llmasos_edge.kernel.scheduling.ready_queue import ReadyQueue
from llmasos_edge.kernel.scheduling.scheduler import Admit, Decision, Keep, Preempt, Room
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds, Priority

AGING_MS: Final = 30_000  # a waiting task is admitted as if one class higher for each of these
PROMOTE_AFTER: Final = 3  # preemptions: then a task is no longer a victim


class PriorityClasses:
    """Aging decides who is admitted next, never who is preempted: there only the classes themselves count,
    so that equals don't take each other's place in turns. The last running task is never a victim of its own class.
    """

    def next(self, ready: ReadyQueue, running: Sequence[Task], room: Room, now: Milliseconds) -> Decision:
        heads = ready.heads()
        if not heads:
            return Keep()
        aged = max(heads, key=lambda task: (_aged(task, now), -task.order))
        if room.can_seat(aged):
            return Admit(aged.id)
        urgent = heads[0]
        if room.can_seat(urgent):
            return Admit(urgent.id)
        victims = _victims(urgent, running)
        for count in range(1, len(victims) + 1):
            if room.can_seat(urgent, without=victims[:count]):
                return Preempt(tuple(victim.id for victim in victims[:count]), by=urgent.id)
        return Keep()


def _victims(urgent: Task, running: Sequence[Task]) -> list[Task]:
    """Who may lose a place to it, in this order. Who lost one too often is spared by all but the critical."""
    lower = [task for task in running if task.priority < urgent.priority]
    if urgent.priority is not Priority.CRITICAL:
        lower = [task for task in lower if task.preemptions < PROMOTE_AFTER]
    return sorted(lower, key=lambda task: (task.preemptions >= PROMOTE_AFTER, task.priority, -task.order))


def _aged(task: Task, now: Milliseconds) -> int:
    """The class that a waiting task counts as; CRITICAL stays above what has merely waited."""
    if task.priority is Priority.CRITICAL:
        return int(Priority.CRITICAL)
    waited = now - task.submitted_ms - task.running_ms(now)
    return int(min(Priority.INTERACTIVE, task.priority + waited // AGING_MS))
