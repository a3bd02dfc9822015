"""The tests of sizes and durations."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.config.units import SIZES, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MiB", 512 * 2**20), ("2 GiB", 2**31), ("1.5GiB", 3 * 2**29), ("512MB", 512_000_000), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    """Binary and decimal units are what they say."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "ms"), [("500ms", 500), ("5s", 5000), ("10m", 600_000), ("1.5h", 5_400_000), ("7d", 604_800_000)]
)
def test_durations(text: str, ms: int) -> None:
    """Durations are in milliseconds."""
    assert parse_duration(text) == ms


@pytest.mark.parametrize(
    "text", ["", "512", "MiB", "-1MiB", "5 s", "1e3MiB", "512mib", "٣MiB", "1.MiB", "9" * 13 + "B"]
)
def test_what_is_no_size(text: str) -> None:
    """What is no size is refused, with an example of one."""
    with pytest.raises(ValueError, match="for example 512MiB"):
        parse_size(text)


@given(st.integers(0, 10**12 - 1), st.sampled_from(sorted(SIZES)))
def test_whole_sizes_are_exact(amount: int, unit: str) -> None:
    """A whole number of any unit loses nothing."""
    assert parse_size(f"{amount}{unit}") == amount * SIZES[unit]


@given(st.text(max_size=20))
def test_any_text_parses_or_is_refused(text: str) -> None:
    """No text makes anything but a duration or a ValueError."""
    with contextlib.suppress(ValueError):
        assert parse_duration(text) >= 0
