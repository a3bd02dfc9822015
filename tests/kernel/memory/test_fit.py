"""Tests of the placement rules."""

import pytest

from llmasos_edge.kernel.memory.extent import Extent
from llmasos_edge.kernel.memory.fit import FITS
from llmasos_edge.kernel.memory.holes import Holes

HOLES = ((3000, 100), (0, 300), (2000, 500), (1000, 100))


def holes(*given: tuple[int, int]) -> Holes:
    """Holes at these offsets, of these sizes."""
    made = Holes()
    for offset, size in given:
        made.give(Extent(offset, size))
    return made


@pytest.mark.parametrize(
    ("fit", "size", "offset"),
    [
        ("first-fit", 100, 0),
        ("first-fit", 400, 2000),
        ("best-fit", 100, 1000),
        ("best-fit", 101, 0),
        ("worst-fit", 100, 2000),
        ("worst-fit", 500, 2000),
    ],
)
def test_the_hole_that_is_chosen(fit: str, size: int, offset: int) -> None:
    """First: the lowest that is large enough; best: the smallest; worst: the largest; of equals the lowest."""
    found = FITS[fit](holes(*HOLES), size)
    assert found is not None
    assert found.offset == offset


@pytest.mark.parametrize("fit", FITS)
def test_no_hole_is_large_enough(fit: str) -> None:
    """Shortage is a value."""
    assert FITS[fit](holes(*HOLES), 501) is None
    assert FITS[fit](holes(), 1) is None
