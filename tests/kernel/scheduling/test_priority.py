"""Tests of priority classes: decisions compared as values."""

from typing import Any

from llmasos_edge.kernel.scheduling.classes import OVERDUE_MS, PROMOTE_AFTER
from llmasos_edge.kernel.scheduling.priority import CREDIT, PriorityClasses
from llmasos_edge.kernel.scheduling.scheduler import Admit, Decision, Keep, Preempt
from llmasos_edge.kernel.scheduling.shares import CRITICAL_DEBT_MS, TURN_MS
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds, Priority
from tests.kernel.nodes import running, tcb
from tests.kernel.scheduling.rooms import FakeRoom, queue

BATCH, NORMAL, INTERACTIVE, CRITICAL = Priority


def decide(
    ready: list[Task], inside: list[Task], sequences: int, cells: int = 1 << 20, now: int = 0, **accounts: Any
) -> Decision:
    """`accounts`: counters of clients, debts to classes."""
    room = FakeRoom(sequences, cells, inside, **accounts)
    policy, waiting = PriorityClasses(), queue(*ready, room=room)
    waiting.order_by(policy)
    return policy.next(waiting, inside, room, Milliseconds(now))


def full(*priorities: Priority, preemptions: int = 0) -> list[Task]:
    """Running tasks, each a little newer than the one before."""
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


def test_of_the_same_class_the_client_served_least_comes_first() -> None:
    """Whoever came first, and however many the other has."""
    busy, quiet = [tcb(n, client="busy") for n in range(1, 4)], tcb(9, client="quiet")
    assert decide([*busy, quiet], [], 4, counters={"busy": 10, "quiet": 9}) == Admit(quiet.id)
    assert decide([*busy, tcb(9, BATCH, client="quiet")], [], 4, counters={"busy": 10}) == Admit(busy[0].id)


def test_inside_a_class_deadlines_come_first_as_long_as_their_client_has_credit() -> None:
    """The earliest of all clients; then nobody gets more than others by naming one."""
    plain, later = tcb(1, client="a"), tcb(2, client="b", deadline_at=9000)
    sooner = tcb(3, client="b", deadline_at=5000)
    assert decide([plain, later, sooner], [], 4, counters={"b": CREDIT}) == Admit(sooner.id)
    assert decide([plain, later, sooner], [], 4, counters={"b": CREDIT + 1}) == Admit(plain.id)
    assert decide([later, tcb(4, INTERACTIVE)], [], 4) == Admit(tcb(4).id)


def test_a_class_that_is_owed_a_turn_is_lent_a_place() -> None:
    """That of the newest of the lowest class above it; its longest waiting task has it while more is owed."""
    inside, urgent = full(NORMAL, INTERACTIVE), tcb(9, INTERACTIVE)
    longest, other = tcb(3, BATCH, ready_since=5), tcb(2, BATCH, ready_since=6)
    lent = {BATCH: TURN_MS}
    assert decide([longest, other, urgent], inside, 2, debts=lent) == Preempt((inside[0].id,), by=longest.id)
    assert decide([longest, urgent], inside, 2, debts={BATCH: TURN_MS - 1}) == Preempt((inside[0].id,), by=urgent.id)
    inside = [running(longest), inside[1]]
    assert decide([other, urgent], inside, 2, debts={BATCH: 1}) == Keep()
    assert decide([other, urgent], inside, 2) == Preempt((longest.id,), by=urgent.id)


def test_not_all_places_are_lent() -> None:
    """Of few places one, of many a quarter."""
    urgent, debts = tcb(99, NORMAL), {BATCH: TURN_MS}
    for lent, of, more in ((1, 4, False), (1, 8, True), (2, 8, False)):
        inside = full(*[BATCH] * lent, *[NORMAL] * (of - lent))
        wants = decide([tcb(50, BATCH), urgent], inside, of, debts=debts)
        assert isinstance(wants, Preempt) is more


def test_the_critical_lend_nothing_until_much_more_is_owed() -> None:
    """An alarm takes any place; under a flood of alarms the others still get a turn, when a place comes free."""
    alarm, waiting = tcb(9, CRITICAL), tcb(1, BATCH)
    assert decide([alarm, waiting], [], 1, debts={BATCH: TURN_MS}) == Admit(alarm.id)
    most = TURN_MS + CRITICAL_DEBT_MS
    assert decide([alarm, waiting], [], 1, debts={BATCH: most}) == Admit(waiting.id)
    assert decide([alarm, waiting], full(CRITICAL), 1, debts={BATCH: most}) == Keep()
    inside = full(BATCH)
    assert decide([alarm], inside, 1, debts={BATCH: CRITICAL_DEBT_MS}) == Preempt((inside[0].id,), by=alarm.id)
    assert decide([alarm], inside, 1, debts={BATCH: CRITICAL_DEBT_MS + 1}) == Keep()


def test_equals_take_turns_where_one_is_overdue_and_their_betters_can_not_have_the_place() -> None:
    """Only there: without somebody more urgent, equals never take each other's place."""
    inside, overdue, urgent = full(BATCH, preemptions=PROMOTE_AFTER), tcb(5, BATCH), tcb(9, NORMAL)
    assert decide([overdue, urgent], inside, 1, now=OVERDUE_MS) == Preempt((inside[0].id,), by=overdue.id)
    assert decide([overdue, urgent], inside, 1, now=OVERDUE_MS - 1) == Keep()
    assert decide([overdue], inside, 1, now=10 * OVERDUE_MS) == Keep()
    inside[0].running_since = Milliseconds(OVERDUE_MS - 1)
    assert decide([overdue, urgent], inside, 1, now=OVERDUE_MS) == Keep()
    inside = full(BATCH)
    assert decide([overdue, urgent], inside, 1, now=OVERDUE_MS) == Preempt((inside[0].id,), by=urgent.id)


def test_who_was_overdue_keeps_its_place_for_a_turn_but_not_before_an_alarm() -> None:
    """Else it would wait as long again for nothing."""
    inside = full(BATCH)
    inside[0].waited_ms = Milliseconds(OVERDUE_MS)
    assert decide([tcb(9)], inside, 1, now=int(TURN_MS) - 1) == Keep()
    assert decide([tcb(9)], inside, 1, now=int(TURN_MS)) == Preempt((inside[0].id,), by=tcb(9).id)
    assert decide([tcb(9, CRITICAL)], inside, 1) == Preempt((inside[0].id,), by=tcb(9).id)


def test_who_was_preempted_often_counts_as_one_class_higher() -> None:
    """Then its own betters no longer take its place, those above them do, and after others of that class."""
    tired = full(BATCH, preemptions=PROMOTE_AFTER)
    assert decide([tcb(9, NORMAL)], tired, 1) == Keep()
    assert decide([tcb(9, NORMAL)], full(BATCH, preemptions=PROMOTE_AFTER - 1), 1) == Preempt(
        (tired[0].id,), by=tcb(9).id
    )
    assert decide([tcb(9, INTERACTIVE)], tired, 1) == Preempt((tired[0].id,), by=tcb(9).id)
    busy = full(INTERACTIVE, preemptions=PROMOTE_AFTER)
    assert decide([tcb(9, CRITICAL)], busy, 1) == Preempt((busy[0].id,), by=tcb(9).id)


def test_nobody_is_ready() -> None:
    """Nothing changes."""
    assert decide([], full(BATCH), 1) == Keep()
