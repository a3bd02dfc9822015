"""What `priority` and `deadline` have in common: a strictly higher class preempts, and no class starves."""

from collections.abc import Sequence
from typing import Final

from llmasos_edge.kernel.scheduling.ready_queue import ReadyQueue
from llmasos_edge.kernel.scheduling.scheduler import Decision, Keep, Room, make_way
from llmasos_edge.kernel.scheduling.shares import CRITICAL_DEBT_MS, TURN_MS
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds, Priority

PROMOTE_AFTER: Final = 3  # preemptions: then a running task counts as one class higher
OVERDUE_MS: Final = 30_000  # a task that waits for so long below a higher class takes the place of an equal
PLACES: Final = 4  # one place of so many is lent to a class that is owed a turn, and one at least


def seat(urgent: Task, ready: ReadyQueue, running: Sequence[Task], room: Room, now: Milliseconds) -> Decision:
    """Make a place for `urgent`, the first of the most urgent class; before that, for whoever must not starve."""
    starving = _starving(urgent, ready, running, room, now)
    if starving is not None:
        return starving
    return make_way(urgent, _victims(urgent, running, room, now), room)


def _starving(
    urgent: Task, ready: ReadyQueue, running: Sequence[Task], room: Room, now: Milliseconds
) -> Decision | None:
    """A place for a class below `urgent` that is owed a turn, else for one of its tasks that is overdue.

    Who is owed may take the place of anyone but the critical; who is overdue only that of an equal that `urgent`
    can't have.
    """
    for priority in Priority:
        task = ready.longest_waiting(priority)
        if task is None or priority >= urgent.priority:
            continue
        equals = [each for each in running if each.priority is priority]
        if room.owed(priority) >= _tolerated(urgent) + TURN_MS and len(equals) < max(1, len(running) // PLACES):
            lenders = [each for each in running if priority < each.priority < Priority.CRITICAL]
            lenders = [each for each in lenders if room.owed(each.priority) <= _tolerated(urgent)]
        elif now - task.ready_since >= OVERDUE_MS:
            lenders = [
                each for each in equals if each.this_run_ms(now) >= TURN_MS and _standing(each) >= urgent.priority
            ]
        else:
            continue
        decision = make_way(task, sorted(lenders, key=lambda each: (each.priority, -each.order)), room)
        if decision != Keep():
            return decision
    return None


def _victims(urgent: Task, running: Sequence[Task], room: Room, now: Milliseconds) -> list[Task]:
    """Who may lose a place to it, in this order: the newest of the lowest class first.

    A class that is owed a turn keeps the place that it was lent, and so does for a turn who was overdue.
    """
    lower = [each for each in running if _standing(each) < urgent.priority]
    lower = [each for each in lower if room.owed(each.priority) <= _tolerated(urgent)]
    if urgent.priority is not Priority.CRITICAL:
        lower = [each for each in lower if each.waited_ms < OVERDUE_MS or each.this_run_ms(now) >= TURN_MS]
    return sorted(lower, key=lambda each: (_standing(each), each.priority, -each.order))


def _standing(task: Task) -> Priority:
    """The class that a running task counts as: who lost its place too often is promoted, but not to CRITICAL."""
    if task.preemptions >= PROMOTE_AFTER and task.priority < Priority.INTERACTIVE:
        return Priority(task.priority + 1)
    return task.priority


def _tolerated(urgent: Task) -> float:
    """What classes may be owed while it takes their places."""
    return CRITICAL_DEBT_MS if urgent.priority is Priority.CRITICAL else 0.0
