"""Tests of priority classes: decisions compared as values."""

from llmasos_edge.kernel.scheduling.priority import AGING_MS, PROMOTE_AFTER, PriorityClasses
from llmasos_edge.kernel.scheduling.scheduler import Admit, Decision, Keep, Preempt
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds, Priority
from tests.kernel.nodes import running, tcb
from tests.kernel.scheduling.rooms import FakeRoom, queue

BATCH, NORMAL, INTERACTIVE, CRITICAL = Priority


def decide(ready: list[Task], inside: list[Task], sequences: int, cells: int = 1 << 20, now: int = 0) -> Decision:
    room = FakeRoom(sequences, cells, inside)
    return PriorityClasses().next(queue(*ready), inside, room, Milliseconds(now))


def full(*priorities: Priority, preemptions: int = 0) -> list[Task]:
    """Running tasks that were submitted just before they are looked at, with aging in mind."""
    return [running(tcb(n, each, preemptions=preemptions), n) for n, each in enumerate(priorities)]


def test_the_most_urgent_is_admitted_first_and_of_equals_the_oldest() -> None:
    """Class before age."""
    old, new, urgent = tcb(1), tcb(2), tcb(3, CRITICAL)
    assert decide([new, old, urgent], [], 4) == Admit(urgent.id)
    assert decide([new, old], [], 4) == Admit(old.id)


def test_the_victim_is_the_newest_of_the_lowest_class() -> None:
    """It has the least to lose."""
    inside = full(NORMAL, BATCH, BATCH)
    urgent = tcb(9, INTERACTIVE)
    assert decide([urgent], inside, 3) == Preempt((inside[2].id,), by=urgent.id)


def test_equals_and_betters_are_never_victims() -> None:
    """Only a strictly lower class loses its place."""
    for priority in Priority:
        assert decide([tcb(9, priority)], full(priority, CRITICAL), 2) == Keep()


def test_as_many_victims_as_the_urgent_task_needs_at_once() -> None:
    """One decision makes all the room, so that nobody else takes it in between."""
    inside = full(BATCH, BATCH, NORMAL)
    urgent = tcb(9, CRITICAL, prompt=25)
    assert decide([urgent], inside, 8, cells=40) == Preempt((inside[1].id, inside[0].id), by=urgent.id)


def test_nobody_is_switched_out_in_vain() -> None:
    """Where all victims together don't make enough room, they stay."""
    inside = full(BATCH, CRITICAL)
    assert decide([tcb(9, INTERACTIVE, prompt=95)], inside, 8, cells=100) == Keep()


def test_a_task_that_waits_for_cells_is_passed_by_the_more_urgent() -> None:
    """The aged one is asked first; the most urgent one may still fit."""
    inside = full(CRITICAL)
    aged, urgent = tcb(1, BATCH, prompt=90), tcb(2, INTERACTIVE, prompt=5)
    assert decide([aged, urgent], inside, 8, cells=50, now=2 * AGING_MS) == Admit(urgent.id)


def test_waiting_raises_the_class_for_admission() -> None:
    """One class for each AGING_MS, never above INTERACTIVE, and the older first."""
    batch, normal = tcb(1, BATCH), tcb(2, NORMAL)
    assert decide([batch, normal], [], 1, now=AGING_MS - 1) == Admit(normal.id)
    normal.submitted_ms = Milliseconds(AGING_MS)
    assert decide([batch, normal], [], 1, now=AGING_MS) == Admit(batch.id)
    critical = tcb(3, CRITICAL)
    assert decide([batch, critical], [], 1, now=100 * AGING_MS) == Admit(critical.id)


def test_aging_never_preempts_and_never_saves_from_preemption() -> None:
    """An old batch task takes nobody's place, and loses its own as any batch task does."""
    old, inside = tcb(1, BATCH), full(NORMAL)
    assert decide([old], inside, 1, now=100 * AGING_MS) == Keep()
    aged, urgent = running(tcb(0, BATCH)), tcb(9, INTERACTIVE)
    aged.running_since = None
    assert decide([old, urgent], [aged], 1, now=100 * AGING_MS) == Preempt((aged.id,), by=urgent.id)


def test_who_was_preempted_often_is_spared_by_all_but_the_critical() -> None:
    """After PROMOTE_AFTER times only an alarm takes its place, and another's first."""
    tired = full(BATCH, preemptions=PROMOTE_AFTER)
    assert decide([tcb(9, INTERACTIVE)], tired, 1) == Keep()
    urgent = tcb(9, CRITICAL)
    assert decide([urgent], tired, 1) == Preempt((tired[0].id,), by=urgent.id)
    fresh = running(tcb(5, NORMAL), 1)
    assert decide([urgent], [*tired, fresh], 2) == Preempt((fresh.id,), by=urgent.id)


def test_nobody_is_ready() -> None:
    """Nothing changes."""
    assert decide([], full(BATCH), 1) == Keep()
