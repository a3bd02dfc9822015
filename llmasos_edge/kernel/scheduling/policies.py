"""The policies that a node file may name."""

from collections.abc import Callable, Mapping
from typing import Final

from llmasos_edge.kernel.scheduling.fcfs import FirstComeFirstServed
from llmasos_edge.kernel.scheduling.priority import PriorityClasses
from llmasos_edge.kernel.scheduling.scheduler import Scheduler

POLICIES: Final[Mapping[str, Callable[[], Scheduler]]] = {
    "fcfs": FirstComeFirstServed,
    "priority": PriorityClasses,
}
