"""Tests of how values look: sizes, times, bars, and text made harmless."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.cli.memory import BAR_CELLS, bar
from llmasos_edge.cli.render import duration, size
from llmasos_edge.cli.terminal import harmless

BYTES = st.integers(0, 2**40)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (98 * 2**20, "98 MiB"),
        (1536 * 2**20, "1.5 GiB"),
        (-(2**21), "-2.0 MiB"),
    ],
)
def test_size(count: int | None, shown: str) -> None:
    """Bytes are shown in the binary unit that suits them."""
    assert size(count) == shown


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (None, "-"),
        (0, "0 ms"),
        (999, "999 ms"),
        (3456, "3.5 s"),
        (65_000, "1 min 05 s"),
        (3_600_000, "1 h 00 min"),
    ],
)
def test_duration(ms: int | None, shown: str) -> None:
    """Milliseconds are shown in the unit that suits them."""
    assert duration(ms) == shown


@pytest.mark.parametrize(
    ("charged", "measured", "shown"),
    [
        (0, None, ""),
        (0, 0, ""),
        (50, None, "#" * 14),
        (50, 25, "#" * 7 + "-" * 7),
        (25, 50, "#" * 7 + "!" * 7),
        (1, None, "#"),
        (100, 100, "#" * 28),
        (100, 300, "#" * 28),
    ],
)
def test_bar(charged: int, measured: int | None, shown: str) -> None:
    """A bar tells used from charged but unused, and from used beyond the charge."""
    assert bar(charged, measured, 100) == shown


@given(BYTES, st.none() | BYTES, BYTES)
def test_bar_fits(charged: int, measured: int | None, whole: int) -> None:
    """No numbers make a bar longer than its room."""
    assert len(bar(charged, measured, whole)) <= BAR_CELLS


@given(st.text())
def test_harmless(text: str) -> None:
    """No control character but tab and newline is left, printable text is kept, and no length changes."""
    shown = harmless(text)
    assert len(shown) == len(text)
    assert all(unicodedata.category(char) != "Cc" or char in "\t\n" for char in shown)
    if text.isprintable():
        assert shown == text
