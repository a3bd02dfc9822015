"""Tests of earliest deadline first."""

from llmasos_edge.kernel.scheduling.deadline import EarliestDeadlineFirst
from llmasos_edge.kernel.scheduling.scheduler import Admit, Decision, Keep, Preempt
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds, Priority
from tests.kernel.nodes import running, tcb
from tests.kernel.scheduling.rooms import FakeRoom, queue

POLICY = EarliestDeadlineFirst()


def decide(ready: list[Task], inside: list[Task], sequences: int) -> Decision:
    waiting = queue(*ready)
    waiting.order_by(POLICY)
    return POLICY.next(waiting, inside, FakeRoom(sequences, running=inside), Milliseconds(0))


def test_the_earliest_deadline_within_the_highest_class() -> None:
    """Of all clients; who has none comes last, in order of arrival."""
    none, late = tcb(1, client="a"), tcb(2, client="a", deadline_at=900)
    soon, batch = tcb(3, client="b", deadline_at=500), tcb(4, Priority.BATCH, deadline_at=1)
    assert decide([none, late, soon, batch], [], 1) == Admit(soon.id)
    assert decide([none, batch, tcb(5)], [], 1) == Admit(none.id)


def test_a_deadline_takes_nobodys_place_but_a_lower_class() -> None:
    """Equals are never preempted."""
    inside = [running(tcb(1))]
    assert decide([tcb(2, deadline_at=1)], inside, 1) == Keep()
    assert decide([tcb(2, Priority.INTERACTIVE)], inside, 1) == Preempt((inside[0].id,), by=tcb(2).id)
