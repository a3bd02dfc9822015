"""What a model's steps cost, fitted to what its worker reports: least squares over all reports of a recording."""

import threading
from collections.abc import Sequence
from typing import Final

from llmasos_edge.engine.protocol import Answer, Command
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.scheduling.batch import Rates
from llmasos_edge.kernel.units import TaskId

TERMS: Final = 5  # steps, generated tokens, prompt tokens, cells that each of the two kinds attended to
CELLS: Final = 1000.0  # cells are counted in thousands, so that all terms are of like size
TRUST: Final = 1e-6  # of what was measured: so much the kernel's rates weigh, which decide what nothing else tells
Row = list[float]


class StepCosts:
    """Reports come in on a worker's reader thread, the fit is asked for on another one.

    The time between two reports of one lease counts, not only the steps: what goes on between steps is part of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._products = [[0.0] * TERMS for _ in range(TERMS)]
        self._sums = [0.0] * TERMS
        self._seen: dict[TaskId, tuple[int, int]] = {}  # computed, generated
        self._reported_at: float | None = None  # by a worker that went on then

    def hear(self, message: Answer | Command, now_ms: float) -> None:
        with self._lock:
            if isinstance(message, hal.Report):
                self._report(message, now_ms)
            elif isinstance(message, hal.Finished):
                self._seen.pop(message.task, None)
            elif isinstance(message, hal.Died):
                self._seen.clear()

    def _report(self, report: hal.Report, now_ms: float) -> None:
        row = self._row(report)
        before, self._reported_at = self._reported_at, None if report.idle else now_ms
        if not report.steps or report.aborted:
            return
        took = report.busy_ms if before is None else max(report.busy_ms, now_ms - before)
        weight = 1.0 / report.steps
        for n, term in enumerate(row):
            self._sums[n] += weight * term * took
            for m, other in enumerate(row):
                self._products[n][m] += weight * term * other

    def _row(self, report: hal.Report) -> Row:
        read_cells = written_cells = 0.0
        for it in report.progress:
            computed, generated = self._seen.get(it.task, (it.cached, 0))
            made = max(0, it.computed - computed)
            # one that answers makes a token a step, unless its state was lost; the first one comes with the prompt
            written = made if generated and made <= report.steps else max(0, it.generated - generated - 1)
            read = max(0, made - written)
            written_cells += written * (it.computed - written / 2)
            read_cells += read * (it.computed - written - read / 2)
            self._seen[it.task] = it.computed, it.generated
        return [
            float(report.steps),
            float(report.decoded),
            float(report.prefilled),
            written_cells / CELLS,
            read_cells / CELLS,
        ]

    def fit(self, rates: Rates) -> tuple[float, float, float, float, float]:
        """Milliseconds of a step, of a generated and of a prompt token, and microseconds of a cell for each of the two.

        None is negative: a term that would be is left out. Where nothing was measured yet, they are the kernel's rates.
        """
        prior = [rates.step_ms, 0.0, rates.prefill_ms, 0.0, 0.0]
        with self._lock:
            products, sums = [list(row) for row in self._products], list(self._sums)
        for n in range(TERMS):
            trust = TRUST * products[n][n] or 1.0
            products[n][n] += trust
            sums[n] += trust * prior[n]
        step, generate, prefill, generate_cell, prefill_cell = _not_negative(products, sums)
        return step or rates.step_ms, generate, prefill, generate_cell, prefill_cell


def _not_negative(products: Sequence[Row], sums: Row) -> Row:
    terms = list(range(TERMS))
    while True:
        found = _solve([[products[n][m] for m in terms] + [sums[n]] for n in terms])
        least = min(range(len(terms)), key=found.__getitem__)
        if found[least] >= 0 or len(terms) == 1:
            costs = dict(zip(terms, found, strict=True))
            return [max(0.0, costs.get(n, 0.0)) for n in range(TERMS)]
        del terms[least]


def _solve(rows: list[Row]) -> Row:
    """Gauss and Jordan, of a matrix that has a positive diagonal; the last column is the right-hand side."""
    for n in range(len(rows)):
        pivot = max(range(n, len(rows)), key=lambda row: abs(rows[row][n]))
        rows[n], rows[pivot] = rows[pivot], rows[n]
        rows[n] = [value / rows[n][n] for value in rows[n]]
        for m in range(len(rows)):
            if m != n:
                factor = rows[m][n]
                rows[m] = [value - factor * above for value, above in zip(rows[m], rows[n], strict=True)]
    return [row[-1] for row in rows]
