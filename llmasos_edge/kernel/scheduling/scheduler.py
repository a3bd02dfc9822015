"""The Scheduler protocol: given who is ready and who runs, what happens next, as a frozen decision.

A policy keeps nothing in mind: what it may go by (waiting and running times, lengths, shares, debts) the dispatcher
accounts, in the task control blocks and behind Room. So a policy can be changed while tasks run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from llmasos_edge.kernel.scheduling.lanes import Rank
from llmasos_edge.kernel.scheduling.ready_queue import ReadyQueue
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import ClientId, Milliseconds, Priority, TaskId


@dataclass(frozen=True, slots=True)
class Admit:
    """Give this task a sequence."""

    task: TaskId


@dataclass(frozen=True, slots=True)
class Preempt:
    """Take the sequences of `victims` away, and give `by` one."""

    victims: tuple[TaskId, ...]
    by: TaskId


@dataclass(frozen=True, slots=True)
class Keep:
    """Nothing changes."""


Decision = Admit | Preempt | Keep


class Room(Protocol):
    """What the policy may ask about the model's context, and about who was served there."""

    quantum_ms: Milliseconds

    def can_seat(self, task: Task, without: Sequence[Task] = ()) -> bool:
        """A sequence and enough cells are free for it; `without`: would be, if these running tasks gave theirs up."""

    def served(self, client: ClientId) -> int:
        """The client's virtual token counter."""

    def owed(self, priority: Priority) -> float:
        """Milliseconds of computing that the class is owed."""


class Scheduler(Protocol):
    by_class: ClassVar[bool]
    """Clients take turns within each class, else whatever the classes of their tasks. Then ranks begin with that."""

    promises: ClassVar[bool]
    """A task whose deadline can't be met, or would break another's, is refused when it becomes ready."""

    def rank(self, task: Task) -> Rank:
        """Where it stands among the waiting tasks, the least first; asked once, when it is put there."""

    def next(self, ready: ReadyQueue, running: Sequence[Task], room: Room, now: Milliseconds) -> Decision:
        """One decision. Asked again until it is Keep; what it decides must be possible (`can_seat`)."""

    def position(self, task: Task, ready: ReadyQueue, room: Room) -> int:
        """How many of those who wait would be served before it, as things stand; it need not be among them yet."""


def make_way(task: Task, victims: Sequence[Task], room: Room) -> Decision:
    """Admit it if it fits, else in the place of as few of the victims, in their order, as it takes."""
    for count in range(len(victims) + 1):
        if room.can_seat(task, without=victims[:count]):
            return Preempt(tuple(victim.id for victim in victims[:count]), by=task.id) if count else Admit(task.id)
    return Keep()
