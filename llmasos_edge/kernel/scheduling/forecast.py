"""Forecasts: when tasks that are served in a given order will end, from the rates measured so far."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import accumulate
from math import ceil
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


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens that a task reads and generates: on average, or still to come."""

    prompt: float
    answer: float

    def blend(self, newest: "Work", weight: float) -> "Work":
        return Work(
            self.prompt + weight * (newest.prompt - self.prompt), self.answer + weight * (newest.answer - self.answer)
        )


def arrival(own: Work, ahead: int | None, inside: Sequence[Work], waiting: int, typical: Work, sequences: int) -> Work:
    """What is computed until its answer is whole: prompts of whomever, and steps of decoding.

    `ahead` typical ones are served before it (None: it has a sequence), `inside` run beside it; `waiting` are all
    others that wait. Whoever gets a sequence before it has ended holds it up by the prompt.
    """
    length = max(1.0, typical.answer)
    free = sequences - len(inside) - (ahead is None)
    leave = sorted([0.0] * free + [each.answer for each in inside])
    begins = 0.0
    if ahead is not None and ahead >= free:
        turns, place = divmod(ahead - free, sequences)
        again = sorted([length] * free + [each.answer for each in inside])
        begins = again[place] + turns * length
    ends = begins + own.answer
    seated = sum(ceil((ends - each) / length) for each in leave if each < ends) - (ahead is not None)
    prompts = own.prompt + sum(each.prompt for each in inside) + min(waiting, seated) * typical.prompt
    return Work(prompts, ends)


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
