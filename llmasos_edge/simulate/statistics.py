"""Figures of a replay: what the textbook asks of a policy."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import Final

from llmasos_edge.kernel.units import Priority
from llmasos_edge.simulate.replay import MISSED, OK, UNPROMISED, Life, Replayed, Seat

WINDOW_MS: Final = 10_000  # fairness is looked at in windows of this length


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds; None: of no task."""

    mean: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Times are of the tasks that ended by themselves."""

    tasks: int
    turnaround: Times
    waiting: Times
    response: Times
    missed: int
    unpromised: int
    failed: int


@dataclass(frozen=True, slots=True)
class Figures:
    """`fairness`: Jain's index over what clients that had work all the time were served in a window, on average."""

    policy: str
    makespan_ms: int
    all: ClassFigures
    classes: dict[str, ClassFigures]  # the most urgent first
    fairness: float | None
    preemptions: int
    parked: int
    restored: int
    swapped_out: int
    swapped_in: int
    loads: int


def figures(replayed: Replayed) -> Figures:
    lives = replayed.lives
    of = {
        priority: [life for life in lives if life.priority is priority] for priority in sorted(Priority, reverse=True)
    }
    return Figures(
        policy=replayed.policy,
        makespan_ms=max((life.ended_ms for life in lives), default=0)
        - min((life.submitted_ms for life in lives), default=0),
        all=_class(lives),
        classes={priority.name.lower(): _class(mine) for priority, mine in of.items() if mine},
        fairness=fairness(lives, replayed.seats),
        preemptions=sum(life.preemptions for life in lives),
        parked=replayed.parked,
        restored=replayed.restored,
        swapped_out=replayed.swapped_out,
        swapped_in=replayed.swapped_in,
        loads=replayed.loads,
    )


def _class(lives: Sequence[Life]) -> ClassFigures:
    whole = [life for life in lives if life.ended == OK]
    missed, unpromised = (sum(life.ended == how for life in lives) for how in (MISSED, UNPROMISED))
    return ClassFigures(
        tasks=len(lives),
        turnaround=_times([life.turnaround_ms for life in whole]),
        waiting=_times([life.waiting_ms for life in whole]),
        response=_times([life.response_ms for life in whole if life.response_ms is not None]),
        missed=missed,
        unpromised=unpromised,
        failed=len(lives) - len(whole) - missed - unpromised,
    )


def _times(values: Sequence[int]) -> Times:
    """The 99th percentile is the least value that so many do not exceed."""
    if not values:
        return Times(None, None)
    return Times(sum(values) / len(values), sorted(values)[ceil(0.99 * len(values)) - 1])


# ---- fairness


def fairness(lives: Iterable[Life], seats: Iterable[Seat]) -> float | None:
    """None: in no window did two clients have work from its beginning to its end."""
    served, busy = _served(lives, seats), _busy(lives)
    windows = defaultdict[int, list[float]](list)
    for client, window in busy:
        windows[window].append(served.get((client, window), 0.0))
    indices = [jain(shares) for shares in windows.values() if len(shares) > 1 and any(shares)]
    return sum(indices) / len(indices) if indices else None


def jain(shares: Sequence[float]) -> float:
    """1: all have the same; 1/n: one of n has everything (Jain, Chiu, Hawe, 1984)."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def _served(lives: Iterable[Life], seats: Iterable[Seat]) -> dict[tuple[str, int], float]:
    """Tokens of each client in each window: those of a task are spread evenly over the time that it was seated."""
    seats = list(seats)
    seated = defaultdict[int, int](int)
    for seat in seats:
        seated[seat.number] += seat.ended_ms - seat.began_ms
    rates = {life.number: life.tokens / seated[life.number] for life in lives if seated.get(life.number)}
    served = defaultdict[tuple[str, int], float](float)
    for seat in seats:
        for window in range(seat.began_ms // WINDOW_MS, seat.ended_ms // WINDOW_MS + 1):
            begin, end = max(seat.began_ms, window * WINDOW_MS), min(seat.ended_ms, (window + 1) * WINDOW_MS)
            served[seat.client, window] += (end - begin) * rates.get(seat.number, 0.0)
    return served


def _busy(lives: Iterable[Life]) -> Iterator[tuple[str, int]]:
    """Each client with the windows in which it had a task at every moment."""
    spans = sorted((life.client, life.submitted_ms, life.ended_ms) for life in lives)
    for client, mine in groupby(spans, key=lambda span: span[0]):
        begin = end = -1
        for _, submitted, ended in mine:
            if submitted > end:
                yield from ((client, window) for window in _within(begin, end))
                begin = submitted
            end = max(end, ended)
        yield from ((client, window) for window in _within(begin, end))


def _within(begin: int, end: int) -> range:
    """The windows that lie in between entirely."""
    return range(-(-begin // WINDOW_MS), end // WINDOW_MS)
