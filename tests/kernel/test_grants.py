"""Tests of what a worker was granted: the cores it may be computing on, and its speeds."""

from llmasos_edge.kernel.grants import Grants, Speeds
from llmasos_edge.kernel.hal import Quantum, Slot
from llmasos_edge.kernel.scheduling.batch import Rates
from llmasos_edge.kernel.units import Milliseconds, TaskId, Tokens

SLOTS = (Slot(TaskId("1-1"), Tokens(1), Tokens(10)),)


def lease(number: int, threads: int, slots: tuple[Slot, ...] = SLOTS) -> Quantum:
    return Quantum(number, slots, Tokens(512), Milliseconds(200), threads)


def grants(*leases: Quantum) -> Grants:
    made = Grants()
    for each in leases:
        made.add(each)
    return made


def test_threads_are_held_until_a_lease_with_fewer_is_told_of() -> None:
    """Whichever of those that were sent the worker has taken, it computes on no more."""
    held = grants(lease(1, 4), lease(2, 1), lease(3, 2))
    assert (held.threads, held.shrinking) == (4, True)
    assert held.confirm(1) == lease(1, 4)
    assert held.threads == 4
    assert held.confirm(3) == lease(3, 2)
    assert (held.threads, held.shrinking) == (2, False)


def test_the_report_of_a_lease_that_is_over_confirms_nothing() -> None:
    """It came late, or from a worker that is gone."""
    held = grants(lease(1, 1), lease(2, 2))
    held.confirm(2)
    assert held.confirm(1) is None
    held.clear()
    assert held.confirm(2) is None
    assert held.threads == 0


def test_an_empty_lease_takes_the_cores_away() -> None:
    """The one before it is what an abort would hit."""
    held = grants(lease(1, 2), lease(2, 2, ()))
    assert held.shrinking
    assert held.last == lease(1, 2)


def test_speeds_are_known_by_threads() -> None:
    """Before anything was measured with so many, as slow as could be: nothing is gained by more, all lost by fewer."""
    speeds = Speeds()
    rates = speeds.use(4)
    rates.step_ms, rates.prefill_ms = 8.0, 1.0
    assert speeds.with_threads(2) == Rates(16.0, 2.0)
    assert speeds.with_threads(8) == Rates(8.0, 1.0)
    speeds.use(2).learn(steps=10, prefilled=0, decoded=10, busy_ms=120.0)
    assert (speeds.now.step_ms, speeds.with_threads(4).step_ms) == (12.0, 8.0)
