"""Tests of shortest job first."""

from llmasos_edge.kernel.scheduling.scheduler import Admit, Keep
from llmasos_edge.kernel.scheduling.sjf import PATIENCE, ShortestJobFirst
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds, Priority
from tests.kernel.nodes import running, tcb
from tests.kernel.scheduling.rooms import FakeRoom, queue

POLICY = ShortestJobFirst()
NOW = Milliseconds(0)


def first(*tasks: Task) -> object:
    ready = queue(*tasks)
    ready.order_by(POLICY)
    return POLICY.next(ready, [], FakeRoom(1), NOW)


def test_the_shortest_comes_first_whatever_its_class() -> None:
    """What counts is what it still costs."""
    long, short = tcb(1, Priority.CRITICAL, left_ms=900), tcb(2, Priority.BATCH, left_ms=100)
    assert first(long, short) == Admit(short.id)


def test_a_long_one_is_overtaken_for_a_limited_time() -> None:
    """By no task that comes later than PATIENCE times the difference."""
    long, short = tcb(1, left_ms=900), tcb(2, left_ms=100)
    short.submitted_ms = Milliseconds(800 * PATIENCE - 1)
    assert first(long, short) == Admit(short.id)
    short.submitted_ms = Milliseconds(800 * PATIENCE + 1)
    assert first(long, short) == Admit(long.id)


def test_nobody_is_preempted() -> None:
    """A full context is left alone."""
    inside = running(tcb(1, left_ms=9000))
    assert POLICY.next(queue(tcb(2)), [inside], FakeRoom(1, running=[inside]), NOW) == Keep()
