"""Tests of the system calls: admission, and each call on a task in each state."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.errors import BadRequest, NoMemory, QueueFull, ShuttingDown, UnknownModel, UnknownTask
from llmasos_edge.kernel.processor import Phase
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Bytes, ModelId, Priority
from tests.kernel.conftest import Simulate
from tests.kernel.nodes import MIB, CheckedSimulation, M, code, is_ok, is_parked, limits, model

PROGRAM = SimulatedProgram(prompt=50, answer=40)
Arrange = Callable[[CheckedSimulation, dict[str, Any]], Task]


def blocked_by_model(simulation: CheckedSimulation, fields: dict[str, Any]) -> Task:
    return simulation.submit(PROGRAM, **fields)


def blocked_by_session(simulation: CheckedSimulation, fields: dict[str, Any]) -> Task:
    simulation.submit(PROGRAM, session="s")
    return simulation.submit(PROGRAM, session="s", **fields)


def new(simulation: CheckedSimulation, fields: dict[str, Any]) -> Task:
    simulation.do(simulation.syscalls.load, M)
    simulation.run(150)
    return simulation.submit(PROGRAM, **fields)


def ready(simulation: CheckedSimulation, fields: dict[str, Any]) -> Task:
    simulation.submit(PROGRAM)
    simulation.submit(PROGRAM)
    task = simulation.submit(PROGRAM, **fields)
    simulation.run(150)
    return task


def running(simulation: CheckedSimulation, fields: dict[str, Any]) -> Task:
    task = simulation.submit(PROGRAM, **fields)
    simulation.run(300)
    return task


def parked(simulation: CheckedSimulation, fields: dict[str, Any]) -> Task:
    """READY, preempted by one of a higher class."""
    task = simulation.submit(PROGRAM, **fields)
    simulation.run(300)
    for _ in range(2):
        simulation.submit(PROGRAM, priority=Priority.CRITICAL)
    simulation.run(30)
    assert is_parked(task)
    return task


def suspended_new(simulation: CheckedSimulation, fields: dict[str, Any]) -> Task:
    task = new(simulation, fields)
    simulation.do(simulation.syscalls.suspend, task.id)
    return task


def suspended_running(simulation: CheckedSimulation, fields: dict[str, Any]) -> Task:
    task = running(simulation, fields)
    simulation.do(simulation.syscalls.suspend, task.id)
    return task


STATES: dict[str, tuple[Arrange, State]] = {
    "blocked by model": (blocked_by_model, State.BLOCKED),
    "blocked by session": (blocked_by_session, State.BLOCKED),
    "new": (new, State.NEW),
    "ready": (ready, State.READY),
    "parked": (parked, State.READY),
    "running": (running, State.RUNNING),
    "suspended while new": (suspended_new, State.SUSPENDED),
    "suspended while running": (suspended_running, State.SUSPENDED),
}
in_every_state = pytest.mark.parametrize("arrange", STATES)


def arranged(simulate: Simulate, name: str, **fields: Any) -> tuple[CheckedSimulation, Task]:
    arrange, state = STATES[name]
    simulation = simulate({M: model(sequences=2)})
    task = arrange(simulation, fields)
    assert task.state is state
    return simulation, task


@in_every_state
def test_cancel(simulate: Simulate, arrange: str) -> None:
    """The task ends at once, with its text so far; the rest of the node goes on."""
    simulation, task = arranged(simulate, arrange)
    simulation.do(simulation.syscalls.cancel, task.id)
    assert code(task) == "cancelled"
    assert task.outcome is not None
    assert task.outcome.error is not None
    assert task.outcome.error.details == {"text": "".join(task.text)}
    simulation.run()
    assert all(is_ok(simulation, other) for other in simulation.tasks() if other is not task)


@in_every_state
def test_suspend_and_resume(simulate: Simulate, arrange: str) -> None:
    """A suspended task stays where it is for as long as its owner wants, and is whole in the end."""
    simulation, task = arranged(simulate, arrange)
    simulation.do(simulation.syscalls.suspend, task.id)
    simulation.run(60_000)
    assert task.state is State.SUSPENDED
    simulation.do(simulation.syscalls.resume, task.id)
    simulation.run()
    assert all(is_ok(simulation, other) for other in simulation.tasks())
    assert task.attempt == 1


@in_every_state
def test_suspend_and_resume_in_one_breath(simulate: Simulate, arrange: str) -> None:
    """A resume before the engine has heard of the suspension loses nothing either."""
    simulation, task = arranged(simulate, arrange)
    for _ in range(3):
        simulation.do(simulation.syscalls.suspend, task.id)
        simulation.do(simulation.syscalls.resume, task.id)
    assert task.state is not State.SUSPENDED
    simulation.run()
    assert all(is_ok(simulation, other) for other in simulation.tasks())


@in_every_state
@pytest.mark.parametrize("priority", [Priority.BATCH, Priority.CRITICAL])
def test_renice(simulate: Simulate, arrange: str, priority: Priority) -> None:
    """The class changes in every state, and the ready queue stays in order."""
    simulation, task = arranged(simulate, arrange)
    simulation.do(simulation.syscalls.renice, task.id, priority)
    assert task.priority is priority
    if task.state is State.SUSPENDED:
        simulation.do(simulation.syscalls.resume, task.id)
    simulation.run()
    assert all(is_ok(simulation, other) for other in simulation.tasks())


@in_every_state
def test_deadline(simulate: Simulate, arrange: str) -> None:
    """At its deadline a task in any state ends, to the millisecond, and its text so far is in the details."""
    simulation, task = arranged(simulate, arrange, deadline_ms=400)
    simulation.do(simulation.syscalls.suspend, task.id)
    simulation.run()
    assert code(task) == "deadline_exceeded"
    assert task.ended_ms == task.submitted_ms + 400
    assert all(is_ok(simulation, other) for other in simulation.tasks() if other is not task)


def test_deadline_of_a_running_task(simulate: Simulate) -> None:
    """The text so far comes with the error, and the sequence is free again."""
    simulation = simulate()
    task = simulation.submit(PROGRAM, deadline_ms=300)
    simulation.run()
    assert code(task) == "deadline_exceeded"
    assert task.outcome is not None
    assert task.outcome.error is not None
    assert task.outcome.error.details == {"text": simulation.text(task)}
    assert simulation.text(task).startswith("0 1 2 ")


def test_what_has_ended_can_not_be_changed(simulate: Simulate) -> None:
    """A second cancel does nothing; the other calls say that the task has ended."""
    simulation = simulate()
    task = simulation.submit(PROGRAM)
    simulation.run()
    simulation.do(simulation.syscalls.cancel, task.id)
    assert is_ok(simulation, task)
    for call in (simulation.syscalls.suspend, simulation.syscalls.resume):
        with pytest.raises(BadRequest, match="has ended"):
            simulation.do(call, task.id)
    with pytest.raises(BadRequest, match="has ended"):
        simulation.do(simulation.syscalls.renice, task.id, Priority.BATCH)


def test_unknown_names(simulate: Simulate) -> None:
    """An unknown task or model is an error that says what there is."""
    simulation = simulate()
    with pytest.raises(UnknownTask, match="no task 9-9"):
        simulation.do(simulation.syscalls.cancel, "9-9")
    simulation.submit(PROGRAM)
    with pytest.raises(UnknownModel, match="it has m"):
        simulation.submit(PROGRAM, model=ModelId("none"))


def test_a_model_larger_than_the_budget_is_refused_at_submission(simulate: Simulate) -> None:
    """The error tells what is needed, what there is, and how many cells would fit."""
    big = SimulatedModel(limits(cells=8192), weights=Bytes(60 * MIB))
    simulation = simulate({M: big}, budget=Bytes(68 * MIB), arena=Bytes(4 * MIB))
    with pytest.raises(NoMemory) as refusal:
        simulation.submit(PROGRAM)
    assert refusal.value.details == {
        "needed": 68 * MIB,
        "budget": 68 * MIB,
        "available": 64 * MIB,
        "would_fit": [{"kv_pool": 4096, "needed": 64 * MIB}],
    }
    assert simulation.tasks() == []


def test_a_model_that_can_not_fit_beside_the_pinned_ones_is_refused(simulate: Simulate) -> None:
    """A pinned model is never dropped, so waiting for its memory would be for ever."""
    pinned, other = ModelId("pinned"), ModelId("other")
    models = {
        pinned: SimulatedModel(limits(cells=2048, pinned=True), weights=Bytes(40 * MIB)),
        other: SimulatedModel(limits(cells=2048), weights=Bytes(40 * MIB)),
    }
    simulation = simulate(models, budget=Bytes(60 * MIB), arena=Bytes(4 * MIB))
    simulation.do(simulation.syscalls.load, pinned)
    with pytest.raises(NoMemory, match="other needs 42 MiB"):
        simulation.submit(PROGRAM, model=other)


def test_load_and_drop(simulate: Simulate) -> None:
    """An idle model comes and goes by command; a busy one is not dropped."""
    simulation = simulate()
    simulation.do(simulation.syscalls.load, M)
    simulation.run()
    assert simulation.syscalls.state(M) == "loaded"
    task = simulation.submit(PROGRAM)
    with pytest.raises(BadRequest, match="busy"):
        simulation.do(simulation.syscalls.drop, M)
    simulation.run()
    assert is_ok(simulation, task)
    simulation.do(simulation.syscalls.drop, M)
    assert simulation.syscalls.state(M) == "unloaded"


def test_a_model_dropped_while_it_is_loaded(simulate: Simulate) -> None:
    """The late word of its worker changes nothing, and it can be loaded again."""
    simulation = simulate(latency_ms=20.0)
    simulation.do(simulation.syscalls.load, M)
    simulation.run(110)
    simulation.do(simulation.syscalls.drop, M)
    simulation.run()
    assert simulation.dispatcher.processor(M).phase is Phase.UNLOADED
    task = simulation.submit(PROGRAM)
    simulation.run()
    assert is_ok(simulation, task)


def test_a_pinned_model_is_loaded_and_stays(simulate: Simulate) -> None:
    """At once and whoever waits; unpinned, it makes room as any other."""
    a, b = ModelId("a"), ModelId("b")
    found = SimulatedModel(limits(cells=2048), weights=Bytes(30 * MIB))
    simulation = simulate(dict.fromkeys((a, b, M), found), budget=Bytes(70 * MIB), arena=Bytes(4 * MIB))
    simulation.do(simulation.syscalls.pin, a, True)
    simulation.run()
    assert simulation.syscalls.state(a) == "loaded"
    tasks = [simulation.submit(PROGRAM, model=name) for name in (b, M, b, M)]
    simulation.run()
    assert simulation.syscalls.state(a) == "loaded"
    simulation.do(simulation.syscalls.pin, a, False)
    tasks += [simulation.submit(PROGRAM, model=name) for name in (b, M)]
    simulation.run()
    assert all(is_ok(simulation, task) for task in tasks)
    assert simulation.syscalls.state(a) == "unloaded"


def test_a_model_is_not_pinned_where_tasks_would_wait_for_ever(simulate: Simulate) -> None:
    """What they want would never fit beside it; nor can more be pinned than fits."""
    a, b = ModelId("a"), ModelId("b")
    found = SimulatedModel(limits(cells=2048), weights=Bytes(30 * MIB))
    simulation = simulate(dict.fromkeys((a, b), found), budget=Bytes(50 * MIB), arena=Bytes(4 * MIB))
    simulation.submit(PROGRAM, model=a)
    with pytest.raises(NoMemory, match="b can't be pinned: a and the pinned models need 64 MiB"):
        simulation.do(simulation.syscalls.pin, b, True)
    simulation.do(simulation.syscalls.pin, a, True)
    with pytest.raises(NoMemory, match="b can't be pinned: "):
        simulation.do(simulation.syscalls.pin, b, True)
    simulation.do(simulation.syscalls.pin, a, False)
    assert not any(each.limits.pinned for each in simulation.dispatcher.processors())


def test_a_pin_lasts_until_the_settings_are_read_again(simulate: Simulate) -> None:
    """Through a drop and a load, but not a reload: then the node file counts."""
    simulation = simulate()
    simulation.do(simulation.syscalls.pin, M, True)
    simulation.run()
    simulation.do(simulation.syscalls.drop, M)
    simulation.do(simulation.syscalls.load, M)
    simulation.run()
    processor = simulation.dispatcher.processor(M)
    assert processor.limits.pinned
    simulation.dispatcher.kernel.loader.refresh()
    assert not processor.limits.pinned


def test_loading_by_command_never_drops_a_busy_model(simulate: Simulate) -> None:
    """There is no room, and the caller is told so."""
    a, b = ModelId("a"), ModelId("b")
    found = SimulatedModel(limits(cells=2048), weights=Bytes(30 * MIB))
    simulation = simulate({a: found, b: found}, budget=Bytes(50 * MIB), arena=Bytes(4 * MIB))
    simulation.submit(PROGRAM, model=a)
    with pytest.raises(NoMemory, match="no room for b"):
        simulation.do(simulation.syscalls.load, b)


def test_a_model_that_tasks_want_is_not_removed(simulate: Simulate) -> None:
    """Even one that is suspended, while the model is not loaded."""
    simulation = simulate()
    loader = simulation.dispatcher.kernel.loader
    task = simulation.submit(PROGRAM)
    with pytest.raises(BadRequest, match="is loaded"):
        loader.forget(M)
    simulation.do(simulation.syscalls.suspend, task.id)
    simulation.do(simulation.syscalls.drop, M)
    with pytest.raises(BadRequest, match="1 tasks want m"):
        loader.forget(M)
    simulation.do(simulation.syscalls.cancel, task.id)
    loader.forget(M)
    assert loader.processor(M) is not None, "made again at the next use"


def bounded(simulation: CheckedSimulation, node: int, client: int) -> None:
    kernel = simulation.dispatcher.kernel
    kernel.targets = replace(kernel.targets, max_waiting=node, max_waiting_per_client=client)


def test_the_queue_of_the_node_is_bounded(simulate: Simulate) -> None:
    """One more is told to come back later, unless it was accepted before a restart; who runs does not count."""
    simulation = simulate({M: model(sequences=2)})
    bounded(simulation, node=5, client=5)
    for number in range(5):
        simulation.submit(PROGRAM, client=f"c{number}")
    with pytest.raises(QueueFull, match="5 tasks wait already"):
        simulation.submit(PROGRAM, client="late")
    simulation.submit(PROGRAM, attempt=2)
    simulation.run(300)
    simulation.submit(PROGRAM, client="later")
    with pytest.raises(QueueFull):
        simulation.submit(PROGRAM, client="latest")


def test_the_queue_of_a_client_is_bounded(simulate: Simulate) -> None:
    """It is told so, and does not take the places of others."""
    simulation = simulate()
    bounded(simulation, node=10, client=3)
    for _ in range(3):
        simulation.submit(PROGRAM, client="greedy")
    with pytest.raises(QueueFull, match="3 tasks of greedy wait already"):
        simulation.submit(PROGRAM, client="greedy")
    simulation.submit(PROGRAM, client="modest")


def test_when_to_come_again_is_measured(simulate: Simulate) -> None:
    """How often one of two ends: 12.5 ms for a token of each, as far as is known, 1 ms a token of the prompt."""
    simulation = simulate({M: model(sequences=2)})
    simulation.submit(PROGRAM)
    simulation.run()
    bounded(simulation, node=1, client=1)
    simulation.submit(SimulatedProgram(prompt=50, answer=400))
    with pytest.raises(QueueFull) as refusal:
        simulation.submit(PROGRAM)
    assert refusal.value.retry_after_ms == pytest.approx(40 * 12.5 / 2 + 50, rel=0.1)


def test_nobody_enters_a_node_that_shuts_down(simulate: Simulate) -> None:
    """The refusal says when to try again."""
    simulation = simulate()
    simulation.syscalls.closing = True
    with pytest.raises(ShuttingDown) as refusal:
        simulation.submit(PROGRAM)
    assert refusal.value.retry_after_ms is not None


def test_position_and_eta(simulate: Simulate) -> None:
    """Who waits is told how many stand before it, and a guess of how long it takes."""
    simulation, task = arranged(simulate, "ready")
    assert simulation.syscalls.position(task) == 0
    assert simulation.syscalls.eta(task) > 0
    later = simulation.submit(PROGRAM)
    simulation.run(10)
    assert simulation.syscalls.position(later) == 1
    simulation.do(simulation.syscalls.renice, later.id, Priority.CRITICAL)
    assert later.state is State.RUNNING
    assert simulation.syscalls.position(later) == 0


def test_etas_on_a_loaded_node(simulate: Simulate) -> None:
    """Of tasks that run and tasks that wait: each is right within a factor of two, once some have ended."""
    simulation = simulate()
    for number in range(16):
        simulation.submit(SimulatedProgram(prompt=20 + number, answer=30))
    simulation.run()
    tasks = [simulation.submit(SimulatedProgram(prompt=20 + number, answer=30)) for number in range(80)]
    simulation.run(100)
    told = {task.id: simulation.now + simulation.syscalls.eta(task) for task in tasks}
    asked = simulation.now
    simulation.run()
    for task in tasks:
        assert task.ended_ms is not None
        assert 0.5 <= (told[task.id] - asked) / (task.ended_ms - asked) <= 2, task


def test_the_eta_of_who_outlives_what_was_predicted(simulate: Simulate) -> None:
    """As long again as it has taken so far, at most to its limit."""
    simulation = simulate()
    simulation.submit(SimulatedProgram(prompt=10, answer=8))
    simulation.run()
    task = simulation.submit(SimulatedProgram(prompt=10, answer=200))
    simulation.run(10 + 60 * 10)
    assert simulation.syscalls.eta(task) == pytest.approx(600, rel=0.2)


def test_a_later_turn_waits_for_those_before_it(simulate: Simulate) -> None:
    """Its position counts them, and its ETA is later than theirs."""
    simulation = simulate()
    first = simulation.submit(PROGRAM, session="s")
    second = simulation.submit(PROGRAM, session="s")
    simulation.run(100)
    assert (simulation.syscalls.position(first), simulation.syscalls.position(second)) == (0, 1)
    assert simulation.syscalls.eta(second) > simulation.syscalls.eta(first)
