"""Tests of round-robin."""

from llmasos_edge.kernel.scheduling.round_robin import RoundRobin
from llmasos_edge.kernel.scheduling.scheduler import Admit, Decision, Keep, Preempt
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Milliseconds, Priority
from tests.kernel.nodes import tcb
from tests.kernel.scheduling.rooms import FakeRoom, queue

POLICY = RoundRobin()


def since(task: Task, moment: int) -> Task:
    task.move(State.RUNNING, Milliseconds(moment))
    return task


def decide(ready: list[Task], inside: list[Task], sequences: int, now: int) -> Decision:
    waiting = queue(*ready)
    waiting.order_by(POLICY)
    return POLICY.next(waiting, inside, FakeRoom(sequences, running=inside), Milliseconds(now))


def test_who_waits_longest_comes_first() -> None:
    """Not who was submitted first, nor who is more urgent."""
    old, other = tcb(1, Priority.CRITICAL, ready_since=50), tcb(2, ready_since=40)
    assert decide([old, other], [], 1, 100) == Admit(other.id)


def test_who_has_had_a_quantum_makes_way_when_others_wait() -> None:
    """The one that has run longest, and nobody sooner."""
    inside = [since(tcb(1), 20), since(tcb(2), 10)]
    waiting = tcb(3, Priority.BATCH)
    assert decide([waiting], inside, 2, 209) == Keep()
    assert decide([waiting], inside, 2, 300) == Preempt((inside[1].id,), by=waiting.id)
    assert decide([], inside, 2, 10_000) == Keep()
