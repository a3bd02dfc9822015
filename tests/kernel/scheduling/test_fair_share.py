"""Tests of fair share."""

from llmasos_edge.kernel.scheduling.fair_share import LEAD, FairShare
from llmasos_edge.kernel.scheduling.scheduler import Admit, Decision, Keep, Preempt
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds, Priority
from tests.kernel.nodes import running, tcb
from tests.kernel.scheduling.rooms import FakeRoom, queue

POLICY = FairShare()


def decide(ready: list[Task], inside: list[Task], sequences: int, now: int = 0, **counters: int) -> Decision:
    room = FakeRoom(sequences, running=inside, counters=counters)
    return POLICY.next(queue(*ready, room=room), inside, room, Milliseconds(now))


def test_the_client_that_was_served_least_comes_next() -> None:
    """However many the other has, whatever their class; of its tasks the oldest."""
    many = [tcb(number, Priority.CRITICAL, client="many") for number in range(5)]
    few = [tcb(11, Priority.BATCH, client="few"), tcb(10, client="few")]
    assert decide([*many, *few], [], 1, many=2, few=1) == Admit(few[1].id)
    assert decide([*many, *few], [], 1, many=1, few=2) == Admit(many[0].id)


def test_who_was_served_more_makes_way_after_its_quantum() -> None:
    """The newest task of the most served client; a small lead is no reason."""
    inside = [running(tcb(number, client=client), number) for number, client in enumerate(("many", "many", "other"))]
    one = tcb(9, client="one")
    assert decide([one], inside, 3, now=200, many=LEAD + 1, other=LEAD) == Preempt((inside[1].id,), by=one.id)
    assert decide([one], inside, 3, now=199, many=LEAD + 1) == Keep()
    assert decide([one], inside, 3, now=200, many=LEAD) == Keep()


def test_a_client_never_takes_its_own_place() -> None:
    """Equals don't go round in circles."""
    inside = [running(tcb(1, client="one"))]
    assert decide([tcb(2, client="one")], inside, 1, now=9000, one=10 * LEAD) == Keep()
