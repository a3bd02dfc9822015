"""The ready queue of one model: a lane per priority class, each in order of arrival."""

from bisect import insort
from collections.abc import Iterator

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Priority


class ReadyQueue:
    """READY tasks only. A task that comes back (preempted, resumed) takes its old place: order is by submission."""

    def __init__(self) -> None:
        self._lanes: dict[Priority, list[Task]] = {priority: [] for priority in sorted(Priority, reverse=True)}

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def __iter__(self) -> Iterator[Task]:
        """Most urgent class first, oldest first within it."""
        return (task for lane in self._lanes.values() for task in lane)

    def put(self, task: Task) -> None:
        insort(self._lanes[task.priority], task, key=lambda other: other.order)

    def remove(self, task: Task) -> None:
        self._lanes[task.priority].remove(task)

    def heads(self) -> list[Task]:
        """The oldest task of each class that has one, most urgent class first."""
        return [lane[0] for lane in self._lanes.values() if lane]

    def position(self, task: Task) -> int:
        """How many tasks stand before it."""
        ahead = sum(len(lane) for priority, lane in self._lanes.items() if priority > task.priority)
        return ahead + self._lanes[task.priority].index(task)

    def check_invariants(self) -> None:
        for priority, lane in self._lanes.items():
            if any(task.state is not State.READY or task.priority is not priority for task in lane):
                raise Panic(f"ReadyQueue.check_invariants: a stranger in lane {priority.name}")
            if [task.order for task in lane] != sorted(task.order for task in lane):
                raise Panic(f"ReadyQueue.check_invariants: lane {priority.name} is out of order")
