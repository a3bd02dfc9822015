"""Tests of KV pools that are made anew while tasks run: they grow for those who wait, and shrink for other models."""

from typing import Any

import pytest

from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.processor import Phase
from llmasos_edge.kernel.task import State
from llmasos_edge.kernel.units import Bytes, ModelId, Priority, Tokens
from tests.kernel.conftest import Simulate
from tests.kernel.nodes import MIB, CheckedSimulation, M, is_ok

LONG = SimulatedProgram(prompt=900, answer=60)
A, B = ModelId("a"), ModelId("b")


def elastic(cells: int = 2048, most: int = 8192, context: int = 1024, **fields: Any) -> SimulatedModel:
    limits = hal.Limits(Tokens(context), Tokens(cells), 8, Bytes(4096), most=Tokens(most))
    return SimulatedModel(limits, weights=Bytes(4 * MIB), **fields)


def cells(simulation: CheckedSimulation, model: ModelId = M) -> int:
    return simulation.dispatcher.processor(model).limits.cells


def resizes(simulation: CheckedSimulation) -> list[int]:
    return [int(str(each.details["cells"])) for each in simulation.trace.events() if each.kind == "pool.resized"]


def test_a_pool_grows_for_those_who_wait(simulate: Simulate) -> None:
    """In mid-answer: whoever runs is saved, and goes on in the new context without computing anything again."""
    simulation = simulate({M: elastic()})
    tasks = [simulation.submit(LONG) for _ in range(2)]
    simulation.run(1500)
    assert [task.state for task in tasks] == [State.RUNNING] * 2
    late = [simulation.submit(LONG) for _ in range(3)]
    simulation.run(200)
    assert (cells(simulation), resizes(simulation)[-1]) == (5120, 5120)
    assert [task.state for task in (*tasks, *late)] == [State.RUNNING] * 5
    simulation.run()
    assert all(is_ok(simulation, task) for task in (*tasks, *late))
    assert simulation.prefilled == 5 * 900
    assert [task.preemptions for task in tasks] == [0, 0]
    charged = {region.kind: region.bytes for region in simulation.ledger.regions()}
    assert charged["kv"] == 5120 * 4096


def test_a_pool_grows_no_further_than_its_limit_and_the_budget(simulate: Simulate) -> None:
    """Who still waits waits for a sequence."""
    simulation = simulate({M: elastic(most=4096)})
    tasks = [simulation.submit(LONG) for _ in range(8)]
    simulation.run()
    assert (cells(simulation), all(is_ok(simulation, task) for task in tasks)) == (4096, True)
    poor = simulate({M: elastic()}, budget=Bytes((4 + 14) * MIB), arena=Bytes(2 * MIB))
    tasks = [poor.submit(LONG) for _ in range(8)]
    poor.run()
    assert (cells(poor), all(is_ok(poor, task) for task in tasks)) == (3072, True)


def test_a_fixed_pool_stays(simulate: Simulate) -> None:
    """`most` 0: the node file has said how large it is."""
    simulation = simulate({M: elastic(most=0)})
    for _ in range(5):
        simulation.submit(LONG)
    simulation.run()
    assert resizes(simulation) == []


def test_a_pool_shrinks_for_a_model_that_wants_the_bytes(simulate: Simulate) -> None:
    """Instead of dropping a model: both are loaded then, and who ran goes on."""
    simulation = simulate({A: elastic(8192), B: elastic(1024)}, budget=Bytes(44 * MIB), arena=Bytes(8 * MIB))
    running = simulation.submit(LONG, model=A)
    simulation.run(1200)
    assert running.state is State.RUNNING
    other = simulation.submit(LONG, model=B)
    simulation.run(300)
    assert [simulation.dispatcher.processor(model).phase for model in (A, B)] == [Phase.LOADED, Phase.LOADED]
    assert cells(simulation, A) < 8192
    assert running.state is State.RUNNING
    simulation.run()
    assert is_ok(simulation, running)
    assert is_ok(simulation, other)
    assert "model.dropped" not in [event.kind for event in simulation.trace.events()]
    assert simulation.prefilled == 2 * 900


@pytest.mark.parametrize("moment", range(0, 400, 20))
def test_a_worker_may_die_in_the_middle_of_it(simulate: Simulate, moment: int) -> None:
    """The next one has the pool of the settings, and everybody is answered."""
    simulation = simulate({M: elastic()}, latency_ms=30.0)
    tasks = [simulation.submit(LONG) for _ in range(5)]
    simulation.run(1300 + moment)
    simulation.machine.engines[M].die("killed by SIGKILL")
    simulation.run()
    assert all(is_ok(simulation, task) for task in tasks)


def test_an_alarm_is_not_held_up_by_it(simulate: Simulate) -> None:
    """It gets its sequence as soon as the new context is there."""
    simulation = simulate({M: elastic()})
    for _ in range(6):
        simulation.submit(LONG, priority=Priority.BATCH)
    simulation.run(1000)
    alarm = simulation.submit(SimulatedProgram(20, 5), priority=Priority.CRITICAL)
    simulation.run(2000)
    assert is_ok(simulation, alarm)
