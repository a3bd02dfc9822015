"""How figures are printed: spreads, ratios, and tables with aligned columns."""

from collections.abc import Sequence
from statistics import median, quantiles


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median first, then the least and the greatest."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} .. {max(values):.{digits}f})"


def percentile(values: Sequence[float], percent: int) -> float:
    """For at least two values; the greatest when there are too few for the percentile."""
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def verdict(value: float, goal: float, *, at_most: bool) -> str:
    """The goal, and whether it is met."""
    met = value <= goal if at_most else value >= goal
    return f"{'<=' if at_most else '>='} {goal:g}: {'met' if met else 'MISSED'}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their head; all but the first column to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join((row[0].ljust(widths[0]), *rest)).rstrip())
    print(flush=True)
