"""Tests of how the benchmarks print figures."""

import pytest

from benchmarks.report import percentile, spread, table, verdict


def test_a_spread_has_the_median_first() -> None:
    """Then the extremes, all with the same digits."""
    assert spread([3.0, 1.0, 2.5], 2) == "2.50 (1.00 .. 3.00)"


@pytest.mark.parametrize(
    ("value", "at_most", "expected"),
    [(3.0, True, "<= 3: met"), (3.1, True, "<= 3: MISSED"), (3.0, False, ">= 3: met"), (2.9, False, ">= 3: MISSED")],
)
def test_a_verdict_says_goal_and_outcome(value: float, at_most: bool, expected: str) -> None:
    """The goal itself is good enough."""
    assert verdict(value, 3, at_most=at_most) == expected


def test_a_percentile_of_few_values_is_near_the_greatest() -> None:
    """No value is made up above the greatest."""
    assert percentile([1.0, 2.0], 99) == pytest.approx(1.99)
    assert percentile(list(range(101)), 99) == 99


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    """The first column to the left, the others to the right."""
    table(("name", "ms"), [("a", 1), ("longer", 100)])
    assert capsys.readouterr().out == "name     ms\na         1\nlonger  100\n\n"
