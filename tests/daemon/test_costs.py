"""Tests of the fit: a simulated worker's costs come out of its reports as they went in."""

from random import Random

import pytest

from llmasos_edge.daemon.costs import StepCosts
from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.engine.simulation import Simulation
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.scheduling.batch import Rates
from llmasos_edge.kernel.units import Bytes, ModelId, TaskId, Tokens

M = ModelId("m")
LIMITS = hal.Limits(Tokens(2048), Tokens(1 << 20), 16, Bytes(100))
COSTS = (8.0, 2.0, 1.5, 3.0, 0.25)
MODEL = SimulatedModel(LIMITS, Bytes(1 << 20), *COSTS)


class Heard(Simulation):
    """Its worker's messages are listened to on their way."""

    def __init__(self, model: SimulatedModel) -> None:
        self.costs = StepCosts()
        super().__init__({M: model})

    def _receive(self, model: ModelId, event: hal.Event) -> None:
        self.costs.hear(event, self.timeline.now)
        super()._receive(model, event)


def recorded(model: SimulatedModel, tasks: int = 60) -> Heard:
    simulation, chance = Heard(model), Random(1)
    for _ in range(tasks):
        simulation.submit(SimulatedProgram(chance.randint(5, 900), chance.randint(1, 120)))
        simulation.run(chance.expovariate(1 / 900))
    simulation.run()
    return simulation


def test_what_steps_cost_is_found() -> None:
    """All five terms at once, from reports that mix them."""
    assert recorded(MODEL).costs.fit(Rates()) == pytest.approx(COSTS, rel=0.1, abs=0.1)


def test_a_mixed_report_is_foretold_by_what_was_found() -> None:
    """The terms share what they can't be told apart by; together they are right."""
    step, generate, prefill, generate_cell, prefill_cell = recorded(MODEL).costs.fit(Rates())
    found = SimulatedModel(LIMITS, Bytes(1), step, generate, prefill, generate_cell, prefill_cell)
    batch = [(500, 1, True), (900, 1, True), (200, 64, False)]
    assert found.costs(batch) == pytest.approx(MODEL.costs(batch), rel=0.03)


def test_no_term_is_negative() -> None:
    """Where cells cost nothing, noise could make them earn something."""
    model = SimulatedModel(LIMITS, Bytes(1 << 20), 8.0, 0.0, 1.5)
    assert min(recorded(model).costs.fit(Rates())) >= 0


def test_without_a_report_the_kernels_rates_hold() -> None:
    """A step, and a token of a prompt."""
    assert StepCosts().fit(Rates(30.0, 2.5)) == pytest.approx((30.0, 0.0, 2.5, 0.0, 0.0))


def test_what_passes_between_steps_is_part_of_them() -> None:
    """A worker whose reports come later than it was busy, while its lease goes on, takes that long."""
    costs = StepCosts()
    for number in range(1, 200):
        progress = hal.Progress(TaskId("t"), Tokens(100 + number), Tokens(number), Tokens(100), ())
        costs.hear(hal.Report(1, (progress,), 1, Tokens(0), Tokens(1), 10.0, idle=False, aborted=False), number * 12.0)
    step, generate, *_ = costs.fit(Rates())
    assert step + generate == pytest.approx(12.0, rel=0.05)


def test_an_aborted_step_teaches_nothing() -> None:
    """Its time is no measure of what it did."""
    costs = StepCosts()
    costs.hear(hal.Report(1, (), 1, Tokens(512), Tokens(0), 9000.0, idle=False, aborted=True), 1.0)
    assert costs.fit(Rates(30.0, 2.5)) == pytest.approx((30.0, 0.0, 2.5, 0.0, 0.0))
