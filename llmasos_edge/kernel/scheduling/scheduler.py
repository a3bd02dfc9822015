"""The Scheduler protocol: given who is ready and who runs, what happens next, as a frozen decision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llmasos_edge.kernel.scheduling.ready_queue import ReadyQueue
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds, TaskId


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
    """What the policy may ask about the model's context."""

    def can_seat(self, task: Task, without: Sequence[Task] = ()) -> bool:
        """A sequence and enough cells are free for it; `without`: would be, if these running tasks gave theirs up."""


class Scheduler(Protocol):
    def next(self, ready: ReadyQueue, running: Sequence[Task], room: Room, now: Milliseconds) -> Decision:
        """One decision. Asked again until it is Keep; what it decides must be possible (`can_seat`)."""
