"""Tests of the ledger of cores on simulated engines; the check after each event counts the threads that compute."""

from itertools import pairwise

import pytest

from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.kernel.leases import DENIED_MS
from llmasos_edge.kernel.scheduling.batch import STEP_MAX_MS
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import ModelId, Priority
from tests.kernel.conftest import Simulate
from tests.kernel.nodes import CheckedSimulation, is_ok, limits

A, B, C, D = (ModelId(name) for name in "abcd")
ENDLESS = SimulatedProgram(prompt=20, answer=100_000)
SHORT = SimulatedProgram(prompt=20, answer=10)
READING = SimulatedProgram(prompt=1900, answer=5)
QUANTUM_MS = 200
STEP_MS = 10


def scaling(parallel: float, prefill_ms: float = 1.0) -> SimulatedModel:
    """A model whose steps get faster with threads as far as `parallel` says."""
    return SimulatedModel(limits(cells=16_384, context=8192), prefill_ms=prefill_ms, parallel=parallel)


def threads(simulation: CheckedSimulation) -> dict[ModelId, int]:
    """Who computes now."""
    return {name: engine.threads for name, engine in simulation.machine.engines.items() if engine.threads}


def watch(simulation: CheckedSimulation, ms: int) -> list[dict[ModelId, int]]:
    """Who computed, every two milliseconds."""
    seen = []
    for _ in range(0, ms, 2):
        simulation.run(2)
        seen.append(threads(simulation))
    return seen


def loaded(simulation: CheckedSimulation) -> CheckedSimulation:
    for name in simulation.models:
        simulation.do(simulation.syscalls.load, name)
    simulation.run(200)
    return simulation


def endless(simulation: CheckedSimulation, *models: ModelId, **fields: object) -> list[Task]:
    return [simulation.submit(ENDLESS, model=name, max_tokens=8000, **fields) for name in models]


def stop(simulation: CheckedSimulation) -> None:
    for task in simulation.tasks():
        if task.live:
            simulation.do(simulation.syscalls.cancel, task.id)


def denied(seen: list[dict[ModelId, int]], model: ModelId) -> int:
    """The most milliseconds in which it did not compute."""
    moments = [-1, *(at for at, computing in enumerate(seen) if model in computing), len(seen)]
    return 2 * max(later - sooner - 1 for sooner, later in pairwise(moments))


def test_one_model_has_all_the_cores(simulate: Simulate) -> None:
    """Also when others are loaded, and have nothing to do."""
    simulation = loaded(simulate({A: scaling(0.4), B: scaling(0.4)}, cores=4))
    endless(simulation, A)
    assert watch(simulation, 500)[50:] == [{A: 4}] * 200
    stop(simulation)


@pytest.mark.parametrize(("parallel", "split"), [(0.4, True), (1.0, False)])
def test_cores_are_split_where_that_is_measured_to_be_better(simulate: Simulate, parallel: float, split: bool) -> None:
    """Steps that hardly get faster with threads are better computed side by side; perfect ones in turns."""
    simulation = loaded(simulate({A: scaling(parallel), B: scaling(parallel)}))
    endless(simulation, A, B)
    simulation.run(20_000)
    seen = watch(simulation, 16_000)
    together = sum(computing == {A: 1, B: 1} for computing in seen) / len(seen)
    assert together > 0.9 if split else together < 0.25
    stop(simulation)


def test_what_is_split_is_tried_in_turns_again(simulate: Simulate) -> None:
    """Ever less often; what the other way costs is a few percent, and both advance alike."""
    simulation = loaded(simulate({A: scaling(0.4), B: scaling(0.4)}))
    tasks = endless(simulation, A, B)
    simulation.run(60_000)
    generated = [task.generated for task in tasks]
    assert min(generated) >= 0.95 * 60_000 / STEP_MS
    assert min(generated) >= 0.95 * max(generated)
    assert [event.details["split"] for event in simulation.trace.events() if event.kind == "cores.shared"] == [True]
    stop(simulation)


@pytest.mark.parametrize("parallel", [0.2, 1.0])
@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("models", [(A, B, C), (A, B, C, D)], ids=["3", "4"])
def test_more_models_than_cores_all_advance(
    simulate: Simulate, models: tuple[ModelId, ...], cores: int, parallel: float
) -> None:
    """None is denied the cores for longer than the others' quanta, and all get as much."""
    simulation = loaded(simulate(dict.fromkeys(models, scaling(parallel)), cores=cores))
    tasks = endless(simulation, *models)
    simulation.run(500)
    seen = watch(simulation, 12_000)
    assert max(denied(seen, name) for name in models) <= (len(models) - 1) * (QUANTUM_MS + 2 * STEP_MS) + 20
    generated = [task.generated for task in tasks]
    assert min(generated) >= 0.8 * max(generated)
    stop(simulation)


@pytest.mark.parametrize("cores", [1, 2])
def test_short_tasks_of_others_deny_nobody(simulate: Simulate, cores: int) -> None:
    """Tasks that come and go in two models all the time don't keep a third from the cores for long."""
    names = (A, B, C)
    simulation = simulate(dict.fromkeys(names, scaling(0.0)), cores=cores)
    simulation.checking = False
    for n in range(300):
        for name in names[:2]:
            simulation.submit(SimulatedProgram(prompt=5, answer=3 + n % 7), model=name)
    long = simulation.submit(ENDLESS, model=C)
    told = [0]
    for _ in range(3):
        simulation.run(1000)
        told.append(long.generated)
    assert all(after > before for before, after in pairwise(told)), told
    assert any(task.live for task in simulation.tasks() if task.model == B), "there was no rivalry"
    stop(simulation)


def test_work_for_a_second_model_waits_for_a_step(simulate: Simulate) -> None:
    """And for the first one's turn, while it is not known whether both are better off at once."""
    simulation = loaded(simulate({A: scaling(0.4), B: scaling(0.4)}))
    endless(simulation, A)
    simulation.run(1000)
    first = simulation.submit(SHORT, model=B)
    simulation.run(QUANTUM_MS + 3 * STEP_MS + SHORT.prompt)
    assert first.generated
    stop(simulation)


@pytest.mark.parametrize("priority", [Priority.NORMAL, Priority.CRITICAL])
def test_a_long_step_of_another_model_is_waited_for_by_equals_and_aborted_for_an_alarm(
    simulate: Simulate, priority: Priority
) -> None:
    """The alarm's model has the cores within milliseconds; its equal's when the step is over, which is a second."""
    simulation = loaded(simulate({A: scaling(0.4, prefill_ms=20.0), B: scaling(0.4)}))
    simulation.do(simulation.syscalls.submit, simulation.submission(READING, model=A))
    simulation.run(50)
    assert threads(simulation) == {A: 2}
    came = simulation.now
    task = simulation.submit(SHORT, model=B, priority=priority)
    while not task.generated:
        simulation.step()
    aborted = [event for event in simulation.trace.events() if event.kind == "step.aborted"]
    if priority is Priority.CRITICAL:
        assert len(aborted) == 1
        assert simulation.now - came <= 50
    else:
        assert not aborted
        assert 500 <= simulation.now - came <= STEP_MAX_MS + 50
    stop(simulation)


def test_what_has_no_token_yet_has_the_cores_before_lower_classes(simulate: Simulate) -> None:
    """An interactive prompt is computed on all cores; then both models go on at once. Equals are not moved aside."""
    simulation = loaded(simulate({A: scaling(0.4), B: scaling(0.4)}))
    endless(simulation, A, B, priority=Priority.BATCH)
    simulation.run(5000)
    task = simulation.submit(SimulatedProgram(prompt=500, answer=100), model=B, priority=Priority.INTERACTIVE)
    seen = watch(simulation, 700)
    assert sum(computing == {B: 2} for computing in seen) >= 150
    assert task.generated
    assert threads(simulation) == {A: 1, B: 1}
    other = simulation.submit(SimulatedProgram(prompt=500, answer=100), model=A, priority=Priority.BATCH)
    assert all(computing == {A: 1, B: 1} for computing in watch(simulation, 300)[10:])
    assert other.live
    stop(simulation)


def test_a_model_is_not_denied_for_a_higher_class_for_ever(simulate: Simulate) -> None:
    """Under prompts of a higher class that never end it still has a quantum every two seconds."""
    simulation = loaded(simulate({A: scaling(0.4), B: scaling(0.4)}))
    simulation.checking = False
    endless(simulation, A, priority=Priority.BATCH)
    for _ in range(100):
        simulation.submit(SimulatedProgram(prompt=400, answer=1), model=B, priority=Priority.INTERACTIVE)
    simulation.run(1000)
    seen = watch(simulation, 12_000)
    assert denied(seen, A) <= DENIED_MS + QUANTUM_MS + 1000
    assert sum(A in computing for computing in seen) / len(seen) >= 0.05
    stop(simulation)


@pytest.mark.parametrize("latency", [0.0, 7.0, 30.0])
def test_threads_never_exceed_the_cores_while_models_come_and_go(simulate: Simulate, latency: float) -> None:
    """Whatever the kernel has not heard of yet: short and long tasks of all classes in three models on four cores."""
    names = (A, B, C)
    simulation = simulate(dict.fromkeys(names, scaling(0.5)), cores=4, latency_ms=latency)
    tasks = []
    for number in range(60):
        program = SimulatedProgram(prompt=5 + 37 * (number % 11), answer=3 + 5 * (number % 7))
        tasks.append(simulation.submit(program, model=names[number % 3], priority=Priority(number % 4)))
        simulation.run(13 * (number % 5))
        if number % 9 == 0:
            simulation.do(simulation.syscalls.cancel, tasks[-1].id)
    simulation.run()
    assert all(is_ok(simulation, task) for number, task in enumerate(tasks) if number % 9)


def test_who_begins_to_decode_does_not_wait_for_the_long_steps_of_others(simulate: Simulate) -> None:
    """Also within the lease in which nobody had decoded yet: the worker knows who does."""
    simulation = loaded(simulate({A: scaling(0.0)}))
    first = simulation.submit(SimulatedProgram(prompt=50, answer=30))
    simulation.submit(READING)
    while not first.generated:
        simulation.step()
    began = simulation.now
    simulation.run(4 * 150)
    assert first.generated >= 4, f"{first.generated} tokens in {simulation.now - began} ms"
    stop(simulation)
