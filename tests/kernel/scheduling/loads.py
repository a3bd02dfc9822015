"""Loads on a simulated node: work that keeps coming, and what became of it."""

from itertools import pairwise

from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.kernel.task import State, Task
from tests.kernel.nodes import CheckedSimulation


class Stream:
    """A client with `width` tasks of one kind in the node at any time: when one ends, another comes."""

    def __init__(self, simulation: CheckedSimulation, program: SimulatedProgram, width: int, **fields: object) -> None:
        self._simulation, self._program, self._fields = simulation, program, fields
        self.tasks = [self._submit() for _ in range(width)]

    def _submit(self) -> Task:
        return self._simulation.submit(self._program, **self._fields)

    def keep_up(self) -> None:
        self.tasks = [task if task.live else self._submit() for task in self.tasks]


def run(simulation: CheckedSimulation, ms: int, *streams: Stream) -> list[set[Task]]:
    """Let time pass while the streams keep up; who was running, every 20 ms."""
    seen = []
    for _ in range(0, ms, 20):
        simulation.run(20)
        for stream in streams:
            stream.keep_up()
        seen.append({task for task in simulation.dispatcher.kernel.table.live() if task.state is State.RUNNING})
    return seen


def longest_pause(seen: list[set[Task]], task: Task) -> int:
    """The most milliseconds in which it did not run."""
    moments = [-1, *(at for at, running in enumerate(seen) if task in running), len(seen)]
    return 20 * max(later - sooner - 1 for sooner, later in pairwise(moments))
