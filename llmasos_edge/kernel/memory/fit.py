"""Placement: which hole an allocation is cut from (first, best or worst fit; Knuth, TAOCP vol. 1, 2.5)."""

from collections.abc import Callable, Mapping
from typing import Final

from llmasos_edge.kernel.memory.extent import Hole
from llmasos_edge.kernel.memory.holes import Holes

Fit = Callable[[Holes, int], Hole | None]


def first_fit(holes: Holes, size: int) -> Hole | None:
    """The lowest hole that is large enough."""
    return holes.first(size)


def best_fit(holes: Holes, size: int) -> Hole | None:
    """The smallest hole that is large enough; the lowest of equals."""
    return holes.smallest(size)


def worst_fit(holes: Holes, size: int) -> Hole | None:
    """The largest hole, if it is large enough; the lowest of equals."""
    hole = holes.largest()
    return hole if hole is not None and hole.size >= size else None


FITS: Final[Mapping[str, Fit]] = {"first-fit": first_fit, "best-fit": best_fit, "worst-fit": worst_fit}
