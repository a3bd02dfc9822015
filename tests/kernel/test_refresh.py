"""Tests of settings that change while tasks run: who is busy keeps what it has, who is idle takes the new."""

from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.kernel.processor import Phase, Processor
from llmasos_edge.kernel.scheduling.policies import POLICIES
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds, ModelId, Priority
from tests.kernel.conftest import Simulate
from tests.kernel.nodes import CheckedSimulation, M, is_ok, limits, model

PROGRAM = SimulatedProgram(prompt=50, answer=40)
SMALL = SimulatedModel(limits(1024, 1024, 2, pinned=True))


def refresh(simulation: CheckedSimulation, *removed: ModelId) -> None:
    simulation.do(lambda _now: simulation.dispatcher.kernel.loader.refresh(removed))


def processor(simulation: CheckedSimulation) -> Processor:
    return simulation.dispatcher.processor(M)


def done(simulation: CheckedSimulation) -> Task:
    task = simulation.submit(PROGRAM)
    simulation.run()
    return task


def test_a_busy_model_finishes_its_tasks_with_the_settings_it_has(simulate: Simulate) -> None:
    """Its tasks don't notice; then it is dropped, and, as it is pinned, loaded anew."""
    models = {M: model()}
    simulation = simulate(models)
    tasks = [simulation.submit(PROGRAM) for _ in range(8)]
    simulation.run(200)
    models[M] = SMALL
    refresh(simulation)
    assert (processor(simulation).limits.sequences, processor(simulation).stale) == (16, True)
    assert len(processor(simulation).running) == 8
    simulation.run()
    assert all(is_ok(simulation, task) for task in tasks)
    assert {task.attempt for task in tasks} == {1}
    assert (processor(simulation).limits, processor(simulation).stale) == (SMALL.limits, False)
    assert processor(simulation).phase is Phase.LOADED
    assert is_ok(simulation, done(simulation))


def test_an_idle_model_takes_them_at_once(simulate: Simulate) -> None:
    """Loaded: dropped, and loaded again when it is wanted. Not loaded: the limits are the new ones already."""
    models = {M: model()}
    simulation = simulate(models)
    done(simulation)
    models[M] = model(1024, 1024, 2)
    refresh(simulation)
    assert processor(simulation).phase is Phase.UNLOADED
    assert is_ok(simulation, done(simulation))
    assert processor(simulation).limits == models[M].limits
    simulation.do(simulation.syscalls.drop, M)
    models[M] = model()
    refresh(simulation)
    assert processor(simulation).limits == models[M].limits


def test_a_pin_alone_moves_nothing(simulate: Simulate) -> None:
    """The model stays loaded."""
    models = {M: model()}
    simulation = simulate(models)
    done(simulation)
    models[M] = SimulatedModel(limits(pinned=True))
    refresh(simulation)
    assert (processor(simulation).phase, processor(simulation).limits.pinned) == (Phase.LOADED, True)


def test_a_removed_model_goes_when_it_is_idle(simulate: Simulate) -> None:
    """Not before; and it does not come back though it was pinned."""
    models = {M: SimulatedModel(limits(pinned=True))}
    simulation = simulate(models)
    task = simulation.submit(PROGRAM)
    simulation.run(200)
    models[M] = model()
    refresh(simulation, M)
    assert processor(simulation).phase is Phase.LOADED
    simulation.run()
    assert is_ok(simulation, task)
    assert processor(simulation).phase is Phase.UNLOADED


def test_a_suspended_task_starts_over(simulate: Simulate) -> None:
    """It does not hold up the change, and is answered under the new settings."""
    models = {M: model()}
    simulation = simulate(models)
    task = simulation.submit(PROGRAM)
    simulation.run(200)
    simulation.do(simulation.syscalls.suspend, task.id)
    models[M] = SMALL
    refresh(simulation)
    simulation.run()
    assert processor(simulation).limits == SMALL.limits
    simulation.do(simulation.syscalls.resume, task.id)
    simulation.run()
    assert is_ok(simulation, task)


def test_another_policy_takes_over_between_two_dispatches(simulate: Simulate) -> None:
    """First come first served until then; afterwards the critical one takes a running one's place."""
    simulation = simulate({M: model(sequences=1)}, policy="fcfs")
    long = simulation.submit(SimulatedProgram(prompt=50, answer=400))
    urgent = simulation.submit(PROGRAM, priority=Priority.CRITICAL)
    simulation.run(1_000)
    assert (long.preemptions, urgent.generated) == (0, 0)
    simulation.dispatcher.kernel.scheduler = POLICIES["priority"]()
    simulation.run()
    assert long.preemptions == 1
    assert urgent.ended_ms is not None
    assert long.ended_ms is not None
    assert urgent.ended_ms < long.ended_ms


def test_other_targets_bound_the_next_lease(simulate: Simulate) -> None:
    """A lease that runs is not touched."""
    simulation = simulate()
    simulation.submit(SimulatedProgram(prompt=50, answer=400))
    simulation.run(300)
    kernel = simulation.dispatcher.kernel
    kernel.targets = type(kernel.targets)(quantum_ms=Milliseconds(70), decode_ms=Milliseconds(50))
    simulation.run(300)
    quantum = processor(simulation).quantum
    assert quantum is not None
    assert quantum.time_ms == 70
