"""The kernel on a simulated machine, as a fixture that ends with a look for leaks."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import pytest

from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.kernel.units import ModelId
from tests.kernel.nodes import CheckedSimulation, M, model


class Simulate(Protocol):
    def __call__(self, models: Mapping[ModelId, SimulatedModel] | None = None, **options: Any) -> CheckedSimulation: ...


@pytest.fixture
def simulate() -> Iterator[Simulate]:
    """Makes simulations, and settles each of them when the test is over."""
    made: list[CheckedSimulation] = []

    def make(models: Mapping[ModelId, SimulatedModel] | None = None, **options: Any) -> CheckedSimulation:
        made.append(CheckedSimulation({M: model()} if models is None else models, **options))
        return made[-1]

    yield make
    for simulation in made:
        simulation.settle()
