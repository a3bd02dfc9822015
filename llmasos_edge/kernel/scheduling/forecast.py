"""Forecasts: when tasks that are served in a given order will end, from the rates measured so far."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import accumulate
from typing import Final

from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds

REACTION_MS: Final = 100  # until a task that may start does: the step in hand, reports on their way
MARGIN: Final = 1.05  # of what is forecast


@dataclass(frozen=True, slots=True)
class Cost:
    """What a task still takes: `prefill_ms` hold everybody up, `decode_ms` pass beside the other sequences."""

    prefill_ms: float
    decode_ms: float

    @property
    def total_ms(self) -> float:
        return self.prefill_ms + self.decode_ms


def ends(costs: Sequence[Cost], sequences: int) -> list[float]:
    """In how many milliseconds each will have ended: each begins, in this order, on the first sequence that is free.

    On a clock that stands still while prompts are computed, a task takes its decoding time alone; then the prompts
    that begin before its end are added.
    """
    free, begins, decoded = [0.0] * sequences, [], []
    for cost in costs:
        begins.append(free[0])
        decoded.append(free[0] + cost.decode_ms)
        heapreplace(free, decoded[-1])
    prefilled = [0.0, *accumulate(cost.prefill_ms for cost in costs)]
    return [end + prefilled[max(number + 1, bisect_left(begins, end))] for number, end in enumerate(decoded)]


def promised(end: float) -> float:
    """In how many milliseconds a task that is forecast to end then will have ended for sure."""
    return REACTION_MS + MARGIN * end


def broken(tasks: Sequence[Task], before: Sequence[float], after: Sequence[float], now: Milliseconds) -> list[Task]:
    """Who would be in time with the ends of `before`, and is delayed and not sure to be with those of `after`."""
    return [
        task
        for task, sooner, later in zip(tasks, before, after, strict=True)
        if task.deadline_at is not None and later > sooner and now + sooner <= task.deadline_at < now + promised(later)
    ]
