"""Tests of first come, first served."""

from llmasos_edge.kernel.scheduling.fcfs import FirstComeFirstServed
from llmasos_edge.kernel.scheduling.scheduler import Admit, Keep
from llmasos_edge.kernel.units import Milliseconds, Priority
from tests.kernel.nodes import running, tcb
from tests.kernel.scheduling.rooms import FakeRoom, queue

NOW = Milliseconds(0)
POLICY = FirstComeFirstServed()


def test_the_oldest_is_admitted_whatever_its_class() -> None:
    """Classes mean nothing here."""
    old, new = tcb(1, Priority.BATCH), tcb(2, Priority.CRITICAL)
    assert POLICY.next(queue(new, old), [], FakeRoom(1), NOW) == Admit(old.id)


def test_nobody_is_preempted_and_nobody_overtakes() -> None:
    """A full context is left alone, and a small task does not pass a large one that waits for cells."""
    inside = running(tcb(1, Priority.BATCH, prompt=50))
    large, small = tcb(2, prompt=60), tcb(3, Priority.CRITICAL, prompt=1)
    assert POLICY.next(queue(large, small), [inside], FakeRoom(1, running=[inside]), NOW) == Keep()
    assert POLICY.next(queue(large, small), [inside], FakeRoom(2, 100, [inside]), NOW) == Keep()


def test_nobody_is_ready() -> None:
    """Nothing changes."""
    assert POLICY.next(queue(), [], FakeRoom(1), NOW) == Keep()
