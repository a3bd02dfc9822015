"""Forecasts: when tasks that are served in a given order will end, from the rates measured so far."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import accumulate

from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds


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


def broken(tasks: Sequence[Task], before: Sequence[float], after: Sequence[float], now: Milliseconds) -> list[Task]:
    """Whose deadline would have been kept with the ends of `before`, and is not with those of `after`."""
    return [
        task
        for task, sooner, later in zip(tasks, before, after, strict=True)
        if task.deadline_at is not None and now + sooner <= task.deadline_at < now + later
    ]
