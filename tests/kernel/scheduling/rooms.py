"""A context with so many sequences and cells, as policies see it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmasos_edge.kernel.scheduling.ready_queue import Order, ReadyQueue
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import ClientId, Milliseconds, Priority


@dataclass
class FakeRoom:
    """`running` is shared with the test that changes it."""

    sequences: int
    cells: int = 1 << 20
    running: list[Task] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    debts: dict[Priority, float] = field(default_factory=dict)
    quantum_ms: Milliseconds = Milliseconds(200)

    def served(self, client: ClientId) -> int:
        return self.counters.get(client, 0)

    def owed(self, priority: Priority) -> float:
        return self.debts.get(priority, 0.0)

    def can_seat(self, task: Task, without: Sequence[Task] = ()) -> bool:
        left = [other for other in self.running if other not in without]
        return len(left) < self.sequences and task.tokens + sum(other.tokens for other in left) <= self.cells


def queue(*tasks: Task, room: FakeRoom | None = None, order: Order | None = None) -> ReadyQueue:
    """Of clients whose counters are those of the room, in the order of a policy; else of arrival."""
    ready = ReadyQueue((room or FakeRoom(1)).served)
    if order is not None:
        ready.order_by(order)
    for task in tasks:
        ready.put(task)
    return ready
