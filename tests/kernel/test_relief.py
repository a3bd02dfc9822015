"""Tests of what the kernel does under memory pressure: parks, drops and refuses in this order, and loses nothing."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.errors import NoMemory
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.memory.pressure import CALM_MS, Level, Pressure
from llmasos_edge.kernel.processor import Phase
from llmasos_edge.kernel.relief import RETRY_MS
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId, Priority, Tokens
from tests.kernel.conftest import Simulate
from tests.kernel.memory.test_pressure import CALM, SEVERE, SHORT, UNEASY
from tests.kernel.nodes import MIB, CheckedSimulation, is_ok

A, B, PINNED = ModelId("a"), ModelId("b"), ModelId("pinned")
LIMITS = hal.Limits(Tokens(1024), Tokens(2048), 4, Bytes(4096))
MODEL = SimulatedModel(LIMITS, weights=Bytes(20 * MIB), load_ms=200)
MODELS = {A: MODEL, B: MODEL, PINNED: replace(MODEL, limits=replace(LIMITS, pinned=True))}
SHORT_TALK = SimulatedProgram(prompt=200, answer=10)
LONG_TALK = SimulatedProgram(prompt=200, answer=250)
SWAP = Bytes(64 * MIB)


def feel(simulation: CheckedSimulation, seen: object, seconds: int = 1) -> None:
    """So many looks, a second apart."""
    for _ in range(seconds):
        simulation.do(simulation.dispatcher.relief.felt, [seen])
        simulation.run(1000)


def level(simulation: CheckedSimulation) -> Level:
    return simulation.dispatcher.kernel.loader.pressure.level


def phases(simulation: CheckedSimulation) -> dict[ModelId, Phase]:
    return {each.model: each.phase for each in simulation.dispatcher.processors()}


def kinds(simulation: CheckedSimulation, *wanted: str) -> list[str]:
    return [event.kind for event in simulation.trace.events() if event.kind in wanted]


def load(simulation: CheckedSimulation, *models: ModelId) -> None:
    for model in models:
        simulation.do(simulation.syscalls.load, model)
    simulation.run(1000)


def end(simulation: CheckedSimulation) -> None:
    """It is calm again, and everybody comes to an end."""
    feel(simulation, CALM, 20)
    assert level(simulation) is Level.NONE
    simulation.run()


def test_idle_sessions_leave_the_arena(simulate: Simulate) -> None:
    """What is written goes at once; it comes back from the swap file at the next turn, and nothing is computed anew."""
    simulation = simulate(MODELS, swap=SWAP)
    first = [simulation.submit(SHORT_TALK, session=f"s{n}", model=A) for n in range(5)]
    simulation.run()
    held = simulation.arena.statistics().used
    assert held >= 5 * 200 * 4096
    feel(simulation, SHORT)
    assert (level(simulation), simulation.arena.statistics().used) == (Level.PARK, 0)
    (event,) = [event for event in simulation.trace.events() if event.kind == "memory.parked"]
    assert event.details == {"bytes": held}
    computed = simulation.prefilled
    again = [simulation.submit(SimulatedProgram(220, 10), session=f"s{n}", model=A) for n in range(5)]
    simulation.run()
    assert all(is_ok(simulation, task) for task in (*first, *again))
    assert simulation.prefilled - computed < 5 * 20
    end(simulation)


def test_without_a_swap_file_sessions_stay_until_models_are_dropped(simulate: Simulate) -> None:
    """Then they are computed again when they go on."""
    simulation = simulate(MODELS)
    simulation.submit(SHORT_TALK, session="s", model=A)
    simulation.run()
    held = simulation.arena.statistics().used
    feel(simulation, SHORT)
    assert simulation.arena.statistics().used == held > 0
    feel(simulation, SHORT, 5)
    assert (level(simulation), simulation.arena.statistics().used) == (Level.DROP, 0)
    end(simulation)
    task = simulation.submit(SimulatedProgram(220, 10), session="s", model=A)
    simulation.run()
    assert is_ok(simulation, task)


def test_idle_cells_are_given_back(simulate: Simulate) -> None:
    """While a task runs, which goes on; the pool grows again when it is calm."""
    elastic = replace(MODEL, limits=replace(LIMITS, cells=Tokens(8192), sequences=8, most=Tokens(8192)))
    simulation = simulate({A: elastic})
    running = simulation.submit(LONG_TALK)
    simulation.run(1000)
    charged = simulation.ledger.charged
    feel(simulation, SHORT)
    assert simulation.ledger.charged == charged - 7168 * 4096
    assert running.state is State.RUNNING
    more = [simulation.submit(LONG_TALK) for _ in range(5)]
    feel(simulation, UNEASY)
    assert simulation.dispatcher.processor(A).limits.cells == 1024
    feel(simulation, CALM, 7)
    more += [simulation.submit(LONG_TALK) for _ in range(8)]
    simulation.run()
    assert simulation.dispatcher.processor(A).limits.cells > 2048
    assert all(is_ok(simulation, task) for task in (running, *more))


def test_idle_models_are_dropped_one_at_a_time(simulate: Simulate) -> None:
    """After parking; not those that are busy or pinned."""
    simulation = simulate({**MODELS, ModelId("c"): MODEL})
    load(simulation, A, B, PINNED, ModelId("c"))
    task = simulation.submit(LONG_TALK, model=A)
    feel(simulation, SHORT, 4)
    assert (level(simulation), set(phases(simulation).values())) == (Level.PARK, {Phase.LOADED})
    feel(simulation, SHORT)
    assert list(phases(simulation).values()).count(Phase.UNLOADED) == 1
    feel(simulation, SHORT)
    assert [name for name, phase in phases(simulation).items() if phase is Phase.LOADED] == [A, PINNED]
    assert kinds(simulation, "memory.dropped", "model.dropped").count("memory.dropped") == 2
    simulation.run()
    assert is_ok(simulation, task)
    feel(simulation, SHORT)
    assert phases(simulation)[A] is Phase.UNLOADED
    assert phases(simulation)[PINNED] is Phase.LOADED
    end(simulation)


def test_nothing_is_loaded_from_drop_on(simulate: Simulate) -> None:
    """A task that was accepted waits until it is calmer; whoever asks for a model is told; a drain is given up."""
    simulation = simulate(MODELS, budget=Bytes(64 * MIB + 30 * MIB))
    running = simulation.submit(LONG_TALK, model=A)
    simulation.run(1000)
    feel(simulation, SEVERE, 2)
    waiting = simulation.submit(SHORT_TALK, model=B)
    feel(simulation, UNEASY, 8)
    assert (waiting.state, waiting.reason) == (State.BLOCKED, "model")
    assert not simulation.dispatcher.processor(A).draining
    assert simulation.dispatcher.kernel.loader.next_plan is None
    with pytest.raises(NoMemory, match="the group has 10 of 800 MiB left") as caught:
        simulation.do(simulation.syscalls.load, B)
    assert caught.value.retry_after_ms == RETRY_MS
    end(simulation)
    assert is_ok(simulation, running)
    assert is_ok(simulation, waiting)


def test_new_tasks_are_refused_last(simulate: Simulate) -> None:
    """Who was accepted is served; an alarm is let in where its model is loaded; after a restart nobody is refused."""
    simulation = simulate(MODELS)
    load(simulation, A)
    accepted = simulation.submit(LONG_TALK, model=A)
    feel(simulation, SEVERE, 2)
    also = simulation.submit(SHORT_TALK, model=A)
    feel(simulation, SEVERE)
    assert level(simulation) is Level.REFUSE
    for fields in ({"model": A}, {"model": B, "priority": Priority.CRITICAL}):
        with pytest.raises(NoMemory, match="ask again later") as caught:
            simulation.submit(SHORT_TALK, **fields)
        assert caught.value.retry_after_ms == RETRY_MS
    assert kinds(simulation, "memory.refused") == ["memory.refused"] * 2
    alarm = simulation.submit(SHORT_TALK, model=A, priority=Priority.CRITICAL)
    replayed = simulation.submit(SHORT_TALK, model=A, attempt=2)
    end(simulation)
    assert all(is_ok(simulation, task) for task in (accepted, also, alarm, replayed))


def test_events_tell_each_level_and_why(simulate: Simulate) -> None:
    """Up and down."""
    simulation = simulate(MODELS)
    feel(simulation, SEVERE, 3)
    end(simulation)
    told = [event.details for event in simulation.trace.events() if event.kind == "memory.pressure"]
    assert [each["level"] for each in told] == ["park", "drop", "refuse", "drop", "park", "none"]
    assert [each["was"] for each in told] == ["none", "park", "drop", "refuse", "drop", "park"]
    assert told[0]["why"] == "the group has 10 of 800 MiB left"
    assert told[-1]["why"] == ""


@settings(max_examples=60, deadline=None)
@given(
    seen=st.lists(st.tuples(st.sampled_from([CALM, UNEASY, SHORT, SEVERE]), st.integers(1, 5)), max_size=8),
    swap=st.sampled_from([0, 4 * MIB, 64 * MIB]),
    arena=st.sampled_from([1 * MIB, 64 * MIB]),
    latency=st.sampled_from([0.0, 30.0]),
)
def test_in_order_and_nothing_is_lost(seen: list[tuple[Any, int]], swap: int, arena: int, latency: float) -> None:
    """Whatever is felt while sessions talk to three models: every accepted task is answered, whole.

    No model is dropped before the level is DROP, nobody is refused before it is REFUSE, and parking came before both.
    """
    simulation = CheckedSimulation(MODELS, swap=Bytes(swap), arena=Bytes(arena), latency_ms=latency)
    tasks: list[Task] = []
    refused = 0
    for turn, (each, seconds) in enumerate(seen):
        for model in MODELS:
            try:
                program = SimulatedProgram(100 * (turn + 1), 20)
                tasks.append(simulation.submit(program, session=f"{model}{turn % 2}", model=model))
            except NoMemory:
                assert level(simulation) is Level.REFUSE
                refused += 1
        feel(simulation, each, seconds)
    end(simulation)
    assert all(is_ok(simulation, task) for task in tasks)
    assert len(tasks) + refused == 3 * len(seen)
    passed = Level.NONE
    for event in simulation.trace.events():
        if event.kind == "memory.pressure":
            passed = Level[str(event.details["level"]).upper()]
        elif event.kind == "memory.dropped":
            assert passed >= Level.DROP
        elif event.kind == "memory.parked":
            assert passed >= Level.PARK
    simulation.settle()


def test_pressure_is_what_the_loader_goes_by(simulate: Simulate) -> None:
    """It may be set like the other settings, and is none at the start."""
    simulation = simulate(MODELS)
    loader = simulation.dispatcher.kernel.loader
    assert loader.pressure == Pressure()
    loader.pressure = Pressure(Level.DROP, "a test", Milliseconds(0))
    task = simulation.submit(SHORT_TALK, model=A)
    simulation.run(CALM_MS)
    assert task.state is State.BLOCKED
    loader.pressure = Pressure()
    simulation.do(lambda _: None)
    simulation.run()
    assert is_ok(simulation, task)
