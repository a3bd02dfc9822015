"""Tests of several models under one budget, on a simulated node: tasks are collated by model, and nobody starves."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.engine.simulation import TARGETS
from llmasos_edge.kernel.memory.replacement import REPLACEMENTS
from llmasos_edge.kernel.memory.residency import LOWER_WAITS, SERVES
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId, Priority
from tests.kernel.conftest import Simulate
from tests.kernel.nodes import MIB, CheckedSimulation, is_ok, limits

A, B, C = (ModelId(name) for name in "abc")
LOAD_MS = 400
BOUND_MS = 5000  # the default
SHORT = SimulatedProgram(prompt=20, answer=10)  # some 130 ms alone
LONG = SimulatedProgram(prompt=100, answer=200)  # some 2.1 s alone
FOUND = SimulatedModel(limits(cells=2048, sequences=4), weights=Bytes(30 * MIB), load_ms=LOAD_MS)


def models(*names: ModelId) -> Mapping[ModelId, SimulatedModel]:
    return dict.fromkeys(names, FOUND)


def room_for(count: int) -> dict[str, Bytes]:
    """A budget for so many models."""
    return {"budget": Bytes((count * 32 + 4) * MIB), "arena": Bytes(4 * MIB)}


def events(simulation: CheckedSimulation, kind: str) -> list[tuple[int, object]]:
    return [(event.at_ms, event.details["model"]) for event in simulation.trace.events() if event.kind == kind]


def loads(simulation: CheckedSimulation) -> list[tuple[int, object]]:
    return events(simulation, "model.loading")


def waited(task: Task) -> int:
    assert task.first_run_ms is not None
    return task.first_run_ms - task.submitted_ms


def stream(simulation: CheckedSimulation, *names: ModelId, every_ms: int, for_ms: int) -> list[Task]:
    """A task for each model every so often."""
    tasks = []
    for _ in range(0, for_ms, every_ms):
        tasks += [simulation.submit(SHORT, model=name, client=name) for name in names]
        simulation.run(every_ms)
    return tasks


def test_a_b_a_b_is_two_loads(simulate: Simulate) -> None:
    """Tasks that wait together are served together, in whatever order they came."""
    simulation = simulate(models(A, B), **room_for(1))
    tasks = [simulation.submit(SHORT, model=name) for name in (A, B) * 10]
    simulation.run()
    assert all(is_ok(simulation, task) for task in tasks)
    assert [model for _, model in loads(simulation)] == [A, B]
    assert events(simulation, "model.draining") == []


def test_models_that_fit_together_are_left_alone(simulate: Simulate) -> None:
    """Both stay, whatever waits."""
    simulation = simulate(models(A, B), **room_for(2))
    tasks = stream(simulation, A, B, every_ms=50, for_ms=12_000)
    simulation.run()
    assert all(is_ok(simulation, task) for task in tasks)
    assert [model for _, model in loads(simulation)] == [A, B]
    assert events(simulation, "model.draining") == []


def test_two_streams_take_turns_as_the_bound_has_it(simulate: Simulate) -> None:
    """A model that never falls idle is drained for the other one, and back; nobody waits much longer than the bound."""
    simulation = simulate(models(A, B), **room_for(1))
    simulation.checking = False
    tasks = stream(simulation, A, B, every_ms=200, for_ms=60_000)
    simulation.run()
    assert all(is_ok(simulation, task) and task.attempt == 1 for task in tasks)
    moments = [at for at, _ in loads(simulation) if at < 60_000]
    gaps = [after - before for before, after in pairwise(moments[1:])]
    assert all(BOUND_MS <= gap <= BOUND_MS + 1000 for gap in gaps), gaps
    assert max(map(waited, tasks)) <= BOUND_MS + LOAD_MS + 1500


def test_slow_loads_make_long_turns(simulate: Simulate) -> None:
    """Load control: a model serves for a multiple of its load time, though others have waited for the bound."""
    slow = SimulatedModel(FOUND.limits, weights=FOUND.weights, load_ms=4000)
    simulation = simulate(dict.fromkeys((A, B), slow), **room_for(1))
    simulation.checking = False
    stream(simulation, A, B, every_ms=200, for_ms=60_000)
    moments = [at for at, _ in loads(simulation)]
    assert len(moments) > 2
    assert all(after - before >= (1 + SERVES) * 4000 for before, after in pairwise(moments))
    simulation.run()


def test_a_short_pause_is_not_idleness(simulate: Simulate) -> None:
    """Two clients that ask again as soon as they are answered: a model is not dropped between two tasks of one."""
    simulation = simulate(models(A, B), **room_for(1))
    current: dict[ModelId, Task] = {}
    answered = dict.fromkeys((A, B), 0)
    while simulation.now < 20_000:
        for name in (A, B):
            if name not in current or not current[name].live:
                answered[name] += name in current
                current[name] = simulation.submit(SHORT, model=name, client=name)
        simulation.step()
    simulation.run()
    assert len(loads(simulation)) <= 20_000 / BOUND_MS + 1
    assert min(answered.values()) > 40


def test_who_has_begun_finishes_and_who_has_not_waits_outside(simulate: Simulate) -> None:
    """While a model is drained, a preempted task goes on, a waiting one is kept out, and nothing is computed twice."""
    simulation = simulate(models(A, B), **room_for(1))
    begun = [simulation.submit(LONG, model=A, priority=Priority.BATCH) for _ in range(4)]
    simulation.run(1000)
    alarm = simulation.submit(SHORT, model=A, priority=Priority.INTERACTIVE)
    while alarm.state is not State.RUNNING:
        simulation.step()
    waiting = simulation.submit(SHORT, model=A, priority=Priority.BATCH)
    simulation.run(20)
    other = simulation.submit(SHORT, model=B, priority=Priority.CRITICAL)
    assert [task.state for task in (waiting, alarm)] == [State.BLOCKED, State.RUNNING]
    assert sum(task.state is State.READY for task in begun) == 1, "it has begun, so it waits inside"
    simulation.run()
    assert all(is_ok(simulation, task) and task.attempt == 1 for task in [*begun, alarm, waiting, other])
    assert max(task.ended_ms or 0 for task in begun) <= (other.first_run_ms or 0) < (waiting.first_run_ms or 0)
    assert [model for _, model in loads(simulation)] == [A, B, A]


def test_a_drained_model_admits_again_when_nobody_claims_its_place(simulate: Simulate) -> None:
    """The task that waited for the other model is cancelled; those kept out are ready as they were."""
    simulation = simulate(models(A, B), **room_for(1))
    simulation.submit(LONG, model=A)
    simulation.run(1000)
    other = simulation.submit(SHORT, model=B, priority=Priority.CRITICAL)
    late = simulation.submit(SHORT, model=A)
    assert (late.state, simulation.dispatcher.processor(A).draining) == (State.BLOCKED, True)
    simulation.do(simulation.syscalls.cancel, other.id)
    assert (late.state, simulation.dispatcher.processor(A).draining) == (State.NEW, False)
    simulation.run()
    assert is_ok(simulation, late)
    assert [model for _, model in loads(simulation)] == [A]


def test_an_alarm_waits_for_the_running_tasks_of_the_victim_at_most(simulate: Simulate) -> None:
    """However many wait there, and though its model is not loaded."""
    simulation = simulate(models(A, B), **room_for(1))
    simulation.checking = False
    before = [simulation.submit(LONG, model=A) for _ in range(40)]
    simulation.run(1500)
    running = [task for task in before if task.state is State.RUNNING]
    alarm = simulation.submit(SHORT, model=B, priority=Priority.CRITICAL)
    simulation.run()
    assert len(running) == 4
    assert alarm.first_run_ms is not None
    assert alarm.first_run_ms <= max(task.ended_ms or 0 for task in running) + LOAD_MS + 10
    assert all(is_ok(simulation, task) and task.attempt == 1 for task in before)


def test_an_alarm_does_not_wait_for_another_models_load(simulate: Simulate) -> None:
    """The load is given up, and begun again afterwards."""
    simulation = simulate(models(A, B), **room_for(1))
    first = simulation.submit(SHORT, model=A)
    simulation.run(LOAD_MS / 2)
    alarm = simulation.submit(SHORT, model=B, priority=Priority.CRITICAL)
    simulation.run()
    assert waited(alarm) <= LOAD_MS + 10
    assert is_ok(simulation, first)
    assert [model for _, model in loads(simulation)] == [A, B, A]


def test_alarms_without_end_do_not_starve_another_models_work(simulate: Simulate) -> None:
    """A batch task of a model that is not loaded has its turn after a number of bounds."""
    simulation = simulate(models(A, B), **room_for(1))
    simulation.checking = False
    simulation.submit(SHORT, model=A, priority=Priority.CRITICAL)
    patient = simulation.submit(SHORT, model=B, priority=Priority.BATCH)
    alarms = []
    while patient.live and simulation.now < 2 * LOWER_WAITS * BOUND_MS:
        alarms.append(simulation.submit(SHORT, model=A, priority=Priority.CRITICAL))
        simulation.run(100)
    assert is_ok(simulation, patient)
    assert waited(patient) <= LOWER_WAITS * BOUND_MS + LOAD_MS + 1000
    simulation.run()
    assert max(map(waited, alarms)) <= 2 * LOAD_MS + 1000


def test_a_large_model_is_not_starved_by_small_ones(simulate: Simulate) -> None:
    """What is drained for it stays free for it."""
    small = SimulatedModel(limits(cells=2048, sequences=4), weights=Bytes(14 * MIB), load_ms=LOAD_MS)
    simulation = simulate({A: small, B: small, C: FOUND}, **room_for(1))
    simulation.checking = False
    stream(simulation, A, B, every_ms=100, for_ms=2000)
    large = simulation.submit(SHORT, model=C)
    stream(simulation, A, B, every_ms=100, for_ms=20_000)
    assert is_ok(simulation, large)
    assert waited(large) <= BOUND_MS + LOAD_MS + 1500
    simulation.run()


def test_a_suspended_tasks_model_claims_nothing(simulate: Simulate) -> None:
    """Until it is resumed."""
    simulation = simulate(models(A, B), **room_for(1))
    task = simulation.submit(SHORT, model=A)
    simulation.submit(LONG, model=B)
    simulation.do(simulation.syscalls.suspend, task.id)
    simulation.run()
    assert [model for _, model in loads(simulation)][-1] == B
    simulation.do(simulation.syscalls.resume, task.id)
    simulation.run()
    assert is_ok(simulation, task)


def test_without_patience_each_load_serves_somebody(simulate: Simulate) -> None:
    """Even with no bound at all nodes make progress: a model that was loaded is not drained before it has begun."""
    eager = replace(TARGETS, model_wait_ms=Milliseconds(0))
    quick = SimulatedModel(FOUND.limits, weights=FOUND.weights, load_ms=0, prepare_ms=50)
    simulation = simulate(dict.fromkeys((A, B), quick), targets=eager, **room_for(1))
    tasks = [simulation.submit(SHORT, model=name) for name in (A, B) * 20]
    simulation.run()
    assert all(is_ok(simulation, task) and task.attempt == 1 for task in tasks)


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_every_policy_serves_all(simulate: Simulate, replacement: str) -> None:
    """Three models, room for two, tasks in turn."""
    simulation = simulate(models(A, B, C), replacement=replacement, **room_for(2))
    tasks = []
    for n in range(60):
        tasks.append(simulation.submit(SHORT, model=(A, B, C)[n % 3]))
        simulation.run(150)
    simulation.run()
    assert all(is_ok(simulation, task) and task.attempt == 1 for task in tasks)
    assert len(loads(simulation)) < len(tasks) / 2


arrivals = st.lists(
    st.tuples(
        st.sampled_from([A, B, C]),
        st.sampled_from(Priority),
        st.sampled_from([SHORT, LONG]),
        st.sampled_from([0, 1, 20, 300, 2000]),
    ),
    max_size=40,
)


@given(arrivals, st.integers(1, 3), st.sampled_from(sorted(REPLACEMENTS)))
@settings(max_examples=60, deadline=None)
def test_whatever_comes_nothing_is_lost_and_nobody_waits_for_ever(
    coming: list[tuple[ModelId, Priority, SimulatedProgram, int]], room: int, replacement: str
) -> None:
    """No task runs twice (no busy model is dropped), models that fit are loaded once, and waiting is bounded."""
    simulation = CheckedSimulation(models(A, B, C), replacement=replacement, **room_for(room))  # type: ignore[arg-type]
    tasks = []
    for model, priority, program, pause in coming:
        tasks.append(simulation.submit(program, model=model, priority=priority))
        simulation.run(pause)
    simulation.run()
    assert all(is_ok(simulation, task) and task.attempt == 1 for task in tasks)
    if room == 3:
        assert len(loads(simulation)) == len({task.model for task in tasks})
    work = sum(10 * 20 + 20 if task.submission.program is SHORT else 200 * 20 + 100 for task in tasks)
    assert max(map(waited, tasks), default=0) <= 3 * BOUND_MS + work + len(tasks) * LOAD_MS
    simulation.settle()
