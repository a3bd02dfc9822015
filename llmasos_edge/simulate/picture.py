"""The picture of replays, as SVG: who had which sequence when, by class, and how many waited; a panel a policy."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from llmasos_edge.cli.render import duration
from llmasos_edge.kernel.units import Priority
from llmasos_edge.services.workload import Workload
from llmasos_edge.simulate.replay import OK, Replayed, Seat

COLOURS: Final = {
    Priority.CRITICAL: "#c62828",
    Priority.INTERACTIVE: "#f09020",
    Priority.NORMAL: "#3b78c3",
    Priority.BATCH: "#9aa3ad",
}
WIDTH: Final = 1240
LEFT: Final = 150
RIGHT: Final = 30
PLOT: Final = WIDTH - LEFT - RIGHT
TOP: Final = 78
MARKS: Final = 18  # height of the row of arrivals
WAITING: Final = 64  # height of the curve of those who wait
GAP: Final = 70  # between panels: the axis, and the next title
DRAWN_ONE_BY_ONE: Final = 4000  # more seats are drawn as what each column of pixels saw most of
LABELLED: Final = 200  # seats: then each bar has its task's number
UNITS: Final = (("h", 3600), ("min", 60), ("s", 1))
TICKS: Final = 13  # at most
TICKS_S: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800, 21600, 43200)
STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#333}"
    ".t{font-size:18px;font-weight:600;fill:#111}.p{font-size:14px;font-weight:600;fill:#111}.d{fill:#777}"
    ".e{text-anchor:end}.m{text-anchor:middle}.w{fill:#fff;text-anchor:middle;font-size:11px}"
    ".g{stroke:#e3e6e9}.a{stroke:#99a}.x{stroke:#111;stroke-width:1.5}.b{stroke:#fff;stroke-width:.5}"
)


class Bar(NamedTuple):
    """From one pixel to another."""

    left: float
    right: float
    priority: Priority
    number: int
    client: str


def picture(workload: Workload, replays: Sequence[Replayed]) -> str:
    """One time axis for all policies, so that panels can be compared by eye."""
    end = max((life.ended_ms for each in replays for life in each.lives), default=0) or 1
    rows = [(model.name, number) for model in workload.header.machine.models for number in range(model.sequences)]
    parts: list[str] = [_text(20, 32, "t", _title(workload)), *_legend()]
    top = TOP
    for each in replays:
        panel = _Panel(each, rows, end, top)
        parts += panel.drawn()
        top = panel.bottom + GAP
    height = top - GAP + 44
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    return "\n".join(
        [head, f"<style>{STYLE}</style>", '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>\n"]
    )


def _title(workload: Workload) -> str:
    return f"{len(workload.arrivals):,} tasks · {workload.header.made_by}"


def _text(x: float, y: float, kind: str, text: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}">{escape(text)}</text>'


def _box(x: float, y: float, width: float, height: float, priority: Priority) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" fill="{COLOURS[priority]}"/>'


def _arrow(x: float, y: float, colour: str) -> str:
    return f'<path d="M{x - 3:.1f} {y}l3 7l3 -7z" fill="{colour}" fill-opacity=".8"/>'


def _cross(x: float, y: float, why: str = "") -> str:
    return f'<path class="x" d="M{x - 3:.1f} {y}l6 6m0 -6l-6 6"><title>{escape(why)}</title></path>'


def _legend() -> Iterator[str]:
    x = 20
    for priority in COLOURS:
        yield _box(x, 46, 14, 14, priority)
        yield _text(x + 20, 57, "", priority.name.lower())
        x += 106
    yield _arrow(x + 6, 50, "#777") + _text(x + 16, 57, "", "a task arrives")
    yield _cross(x + 120, 50) + _text(x + 132, 57, "", "one ends without its answer")


class _Panel:
    """One policy: a row of arrivals, a row for each sequence, and the curve of those who wait."""

    def __init__(self, replayed: Replayed, rows: Sequence[tuple[str, int]], end_ms: int, top: int) -> None:
        self._replayed, self._rows, self._scale, self._end = replayed, rows, PLOT / end_ms, end_ms
        self._few = len(replayed.seats) <= DRAWN_ONE_BY_ONE
        self._height = 20 if len(rows) <= 8 else 14 if len(rows) <= 32 else 7  # of a sequence's row
        self._top = top + 26
        self._first = self._top + MARKS
        self._curve = self._first + self._height * len(rows) + 12
        self.bottom = self._curve + WAITING

    def drawn(self) -> Iterator[str]:
        yield from self._heading()
        yield from self._axis()
        if self._few:
            yield from self._marks()
        of = defaultdict[tuple[str, int], list[Seat]](list)
        for seat in self._replayed.seats:
            of[seat.model, seat.sequence].append(seat)
        for place, row in enumerate(self._rows):
            bars = [self._bar(seat) for seat in of[row]] if self._few else _columns(of[row], self._scale)
            yield from self._row(place, bars)
        yield from self._waiting()

    def _x(self, ms: float) -> float:
        return LEFT + ms * self._scale

    def _bar(self, seat: Seat) -> Bar:
        begin, end = seat.began_ms * self._scale, seat.ended_ms * self._scale
        return Bar(begin, max(end, begin + 0.6), seat.priority, seat.number, seat.client)

    def _heading(self) -> Iterator[str]:
        lives = self._replayed.lives
        whole = [life.turnaround_ms for life in lives if life.ended == OK]
        mean = duration(sum(whole) / len(whole)) if whole else "-"
        facts = [f"mean turnaround {mean}", f"{sum(life.preemptions for life in lives):,} preemptions"]
        if len(whole) < len(lives):
            facts.append(f"{len(lives) - len(whole):,} without an answer")
        y = self._top - 10
        yield _text(20, y, "p", self._replayed.policy)
        yield _text(LEFT, y, "d", " · ".join(facts))

    def _axis(self) -> Iterator[str]:
        step = next((each for each in TICKS_S if self._end / 1000 / each <= TICKS), self._end // 1000 // TICKS + 1)
        for second in range(0, self._end // 1000 + 1, step):
            x = self._x(second * 1000)
            yield f'<path class="g" d="M{x:.1f} {self._first}V{self.bottom}"/>'
            yield _text(x, self.bottom + 17, "d m", _moment(second, step))
        yield f'<path class="a" d="M{LEFT} {self.bottom}H{LEFT + PLOT}"/>'

    def _marks(self) -> Iterator[str]:
        for life in self._replayed.lives:
            yield _arrow(self._x(life.submitted_ms), self._top, COLOURS[life.priority])
            if life.ended != OK:
                yield _cross(self._x(life.ended_ms), self._top + 8, f"task {life.number}: {life.ended}")

    def _row(self, place: int, bars: Iterable[Bar]) -> Iterator[str]:
        (model, sequence), y = self._rows[place], self._first + place * self._height
        if sequence == 0:
            yield _text(LEFT - 28, y + 11, "e", model)
        if self._height > 10 or sequence % 8 == 0:
            yield _text(LEFT - 8, y + min(self._height // 2 + 4, 11), "e d", str(sequence))
        height = self._height - (2 if self._height > 10 else 1)
        labelled = len(self._replayed.seats) <= LABELLED
        for bar in bars:
            width = bar.right - bar.left
            box = _box(LEFT + bar.left, y, width, height, bar.priority)
            if self._few:
                who = escape(f"task {bar.number} of {bar.client}")
                yield f'<g class="b">{box}<title>{who}</title></g>'
            else:
                yield box
            if labelled and width > 20:
                yield _text(LEFT + (bar.left + bar.right) / 2, y + height // 2 + 4, "w", str(bar.number))

    def _waiting(self) -> Iterator[str]:
        """Stacked, the most urgent class at the bottom."""
        curves = waiting(self._replayed, self._scale)
        most = max((sum(column) for column in zip(*curves.values(), strict=True)), default=0)
        yield _text(LEFT - 8, self._curve + WAITING // 2, "e", "waiting")
        yield _text(LEFT - 8, self._curve + 8, "e d", f"{most:,}")
        below = [0] * PLOT
        for priority, counts in curves.items():
            above = [low + count for low, count in zip(below, counts, strict=True)]
            if any(counts):
                yield f'<path fill="{COLOURS[priority]}" fill-opacity=".75" d="{self._area(below, above, most)}"/>'
            below = above

    def _area(self, below: Sequence[int], above: Sequence[int], most: int) -> str:
        """Steps along the upper edge, and back along the lower one."""

        def edge(heights: Sequence[int]) -> Iterator[tuple[int, float]]:
            for x, (height, run) in _runs(heights):
                y = self.bottom - height * (WAITING - 4) / most
                yield from ((LEFT + x, y), (LEFT + x + run, y))

        points = [*edge(above), *reversed(list(edge(below)))]
        return "M" + "L".join(f"{x} {y:.1f}" for x, y in points) + "Z"


def _runs(values: Sequence[int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Where each run of equal values begins, its value and its length."""
    at = 0
    for value, run in groupby(values):
        length = sum(1 for _ in run)
        yield at, (value, length)
        at += length


def waiting(replayed: Replayed, scale: float) -> dict[Priority, list[int]]:
    """How many of each class have no sequence, at the end of each column of pixels."""
    changes = {priority: [0] * (PLOT + 1) for priority in COLOURS}

    def change(priority: Priority, ms: int, by: int) -> None:
        changes[priority][min(PLOT, int(ms * scale))] += by

    for life in replayed.lives:
        change(life.priority, life.submitted_ms, 1)
        change(life.priority, life.ended_ms, -1)
    for seat in replayed.seats:
        change(seat.priority, seat.began_ms, -1)
        change(seat.priority, seat.ended_ms, 1)
    return {priority: _sums(columns[:PLOT]) for priority, columns in changes.items()}


def _sums(changes: Iterable[int]) -> list[int]:
    total, sums = 0, []
    for change in changes:
        total += change
        sums.append(total)
    return sums


def _columns(seats: Iterable[Seat], scale: float) -> Iterator[Bar]:
    """What each column of pixels saw most of; columns alike become one bar."""
    seen = [dict[Priority, float]() for _ in range(PLOT)]
    for seat in seats:
        begin, end = seat.began_ms * scale, seat.ended_ms * scale
        for column in range(int(begin), min(PLOT - 1, int(end)) + 1):
            part = min(end, column + 1) - max(begin, column)
            seen[column][seat.priority] = seen[column].get(seat.priority, 0.0) + part
    most = [max(each, key=lambda it: each[it]) if sum(each.values()) >= 0.5 else None for each in seen]
    at = 0
    for priority, run in groupby(most):
        length = sum(1 for _ in run)
        if priority is not None:
            yield Bar(at, at + length, priority, 0, "")
        at += length


def _moment(second: int, step: int) -> str:
    """In the largest unit that all moments of such steps have whole numbers of."""
    unit, seconds = next((unit, seconds) for unit, seconds in UNITS if step % seconds == 0)
    return f"{second // seconds} {unit}"
