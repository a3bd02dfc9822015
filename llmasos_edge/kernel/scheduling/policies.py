"""The policies that a node file may name."""

from collections.abc import Callable, Mapping
from typing import Final

from llmasos_edge.kernel.scheduling.deadline import EarliestDeadlineFirst
from llmasos_edge.kernel.scheduling.fair_share import FairShare
from llmasos_edge.kernel.scheduling.fcfs import FirstComeFirstServed
from llmasos_edge.kernel.scheduling.priority import PriorityClasses
from llmasos_edge.kernel.scheduling.round_robin import RoundRobin
from llmasos_edge.kernel.scheduling.scheduler import Scheduler
from llmasos_edge.kernel.scheduling.sjf import ShortestJobFirst

POLICIES: Final[Mapping[str, Callable[[], Scheduler]]] = {
    "fcfs": FirstComeFirstServed,
    "sjf": ShortestJobFirst,
    "round-robin": RoundRobin,
    "priority": PriorityClasses,
    "deadline": EarliestDeadlineFirst,
    "fair-share": FairShare,
}
