"""Tests of the loader: a worker's memory is lent again when it has been given back, and not before."""

import pytest

from llmasos_edge.kernel.processor import Phase
from llmasos_edge.kernel.units import Priority
from tests.kernel.conftest import Simulate
from tests.kernel.nodes import CheckedSimulation, is_ok
from tests.kernel.test_collation import LONG, SHORT, A, B, C, events, models, room_for

ENDING_MS = 70  # from the command to end until the kernel hears that the worker is gone


@pytest.fixture
def simulation(simulate: Simulate) -> CheckedSimulation:
    """Three models, and memory for one; each worker takes its time to go."""
    return simulate(models(A, B, C), latency_ms=ENDING_MS, **room_for(1))


def charged(simulation: CheckedSimulation) -> set[str]:
    return {region.name.partition(" ")[0] for region in simulation.ledger.regions()} - {"arena"}


def test_a_load_begins_when_the_victim_is_gone(simulation: CheckedSimulation) -> None:
    """Until then the victim is charged, and the other one is loading without a worker."""
    simulation.submit(SHORT, model=A)
    simulation.run()
    task = simulation.submit(SHORT, model=B)
    processor = simulation.dispatcher.processor(B)
    assert (processor.phase, processor.engine, bool(processor.awaits)) == (Phase.LOADING, None, True)
    assert charged(simulation) == {A}
    simulation.run(ENDING_MS + 1)
    assert charged(simulation) == {B}
    assert processor.engine is not None
    simulation.run()
    assert is_ok(simulation, task)
    assert len(events(simulation, "model.loading")) == 2


def test_a_model_comes_back_after_its_own_worker_is_gone(simulation: CheckedSimulation) -> None:
    """Two workers of one model are never there together."""
    simulation.do(simulation.syscalls.load, A)
    simulation.run()
    simulation.do(simulation.syscalls.drop, A)
    first = simulation.machine.engines[A]
    task = simulation.submit(SHORT, model=A)
    simulation.run(ENDING_MS - 1)
    assert simulation.machine.engines[A] is first
    simulation.run()
    assert simulation.machine.engines[A] is not first
    assert is_ok(simulation, task)


def test_what_comes_free_is_for_whom_it_was_made_free(simulation: CheckedSimulation) -> None:
    """A model that is wanted meanwhile takes its turn after that, and drops nobody else."""
    simulation.submit(SHORT, model=A)
    simulation.run()
    tasks = [simulation.submit(LONG, model=name, priority=Priority.NORMAL) for name in (B, C)]
    simulation.run(ENDING_MS + 1)
    assert charged(simulation) == {B}
    simulation.run()
    assert all(is_ok(simulation, task) for task in tasks)
    assert [model for _, model in events(simulation, "model.loading")] == [A, B, C]


def test_a_load_that_has_not_begun_can_be_given_up(simulation: CheckedSimulation) -> None:
    """For an alarm, or by `drop`: nothing of it stays behind."""
    simulation.submit(SHORT, model=A)
    simulation.run()
    simulation.do(simulation.syscalls.load, B)
    simulation.do(simulation.syscalls.drop, B)
    assert simulation.dispatcher.processor(B).awaits is None
    simulation.do(simulation.syscalls.load, B)
    alarm = simulation.submit(SHORT, model=C, priority=Priority.CRITICAL)
    simulation.run()
    assert is_ok(simulation, alarm)
    assert B not in {model for _, model in events(simulation, "model.loaded")}
