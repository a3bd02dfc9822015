"""Placement: which hole an allocation is cut from (first, best or worst fit; Knuth, TAOCP vol. 1, 2.5)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from llmasos_edge.kernel.memory.extent import Hole

Fit = Callable[[Iterable[Hole], int], Hole | None]


def first_fit(holes: Iterable[Hole], size: int) -> Hole | None:
    """The lowest hole that is large enough."""
    return next((hole for hole in holes if hole.size >= size), None)


def best_fit(holes: Iterable[Hole], size: int) -> Hole | None:
    """The smallest hole that is large enough; the lowest of equals."""
    return min((hole for hole in holes if hole.size >= size), key=lambda hole: hole.size, default=None)


def worst_fit(holes: Iterable[Hole], size: int) -> Hole | None:
    """The largest hole, if it is large enough; the lowest of equals."""
    return max((hole for hole in holes if hole.size >= size), key=lambda hole: hole.size, default=None)


FITS: Final[Mapping[str, Fit]] = {"first-fit": first_fit, "best-fit": best_fit, "worst-fit": worst_fit}
