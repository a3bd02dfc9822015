"""Tests of the decision under memory pressure: what is short, in which order it escalates, and how it comes down."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.kernel.memory.pressure import CALM_MS, SEVERE_STEP_MS, STEP_MS, Level, Pressure, Space, Strain, after
from llmasos_edge.kernel.units import Bytes, Milliseconds

MIB = 1 << 20


def space(available: int, total: int = 800, stalled: float = 0.0, hits: int = 0) -> Space:
    """MiB; of 800, less than 50 is short, less than 25 severe, and 75 is calm."""
    return Space("the group", Bytes(available * MIB), Bytes(total * MIB), stalled, hits)


CALM, UNEASY, SHORT, SEVERE = (space(each) for each in (400, 60, 40, 10))
looks = st.lists(st.tuples(st.sampled_from([CALM, UNEASY, SHORT, SEVERE]), st.integers(1, 6000)), max_size=60)


@pytest.mark.parametrize(
    ("seen", "strain"),
    [
        (space(75), Strain.CALM),
        (space(74), Strain.UNEASY),
        (space(50), Strain.UNEASY),
        (space(49), Strain.SHORT),
        (space(24), Strain.SEVERE),
        (space(74, stalled=0.1), Strain.SHORT),
        (space(49, hits=1), Strain.SEVERE),
        (space(75, stalled=1.0, hits=9), Strain.CALM),
        (space(256, total=64_000), Strain.UNEASY),
        (space(384, total=64_000), Strain.CALM),
    ],
)
def test_what_is_short(seen: Space, strain: Strain) -> None:
    """Who waits although memory is there is somebody else; a large machine needs no more than 256 MiB."""
    assert seen.strain is strain


def test_it_goes_up_step_by_step() -> None:
    """At once to PARK, then after STEP_MS each; the worst space says why."""
    first = after(Pressure(), [CALM, SHORT], Milliseconds(1000))
    assert first == Pressure(Level.PARK, "the group has 40 of 800 MiB left", Milliseconds(1000))
    assert after(first, [SHORT], Milliseconds(999 + STEP_MS)) == first
    second = after(first, [SHORT], Milliseconds(1000 + STEP_MS))
    assert second == Pressure(Level.DROP, first.why, Milliseconds(1000 + STEP_MS))
    assert after(second, [SHORT], Milliseconds(10**6)) == second


def test_severe_shortage_is_quicker_and_goes_further() -> None:
    """A level at each look, a second apart."""
    now, pressure, levels = 0, Pressure(), []
    for now in range(1000, 5000, SEVERE_STEP_MS):
        pressure = after(pressure, [SEVERE], Milliseconds(now))
        levels.append(pressure.level)
    assert levels[:3] == [Level.PARK, Level.DROP, Level.REFUSE]
    assert set(levels[3:]) == {Level.REFUSE}


def test_it_comes_down_after_a_while_of_calm() -> None:
    """A level at a time; unease begins the while anew; without a word of why at the end."""
    at_drop = Pressure(Level.DROP, "why", Milliseconds(0))
    calm = after(at_drop, [CALM], Milliseconds(1000))
    assert calm == Pressure(Level.DROP, "why", Milliseconds(0), Milliseconds(1000))
    assert after(calm, [UNEASY], Milliseconds(2000)) == at_drop
    down = after(calm, [CALM], Milliseconds(1000 + CALM_MS))
    assert down == Pressure(Level.PARK, "why", Milliseconds(1000 + CALM_MS), Milliseconds(1000))
    assert after(down, [CALM], Milliseconds(999 + 2 * CALM_MS)) == down
    assert after(down, [CALM], Milliseconds(1000 + 2 * CALM_MS)) == Pressure(since=Milliseconds(1000 + 2 * CALM_MS))


def test_nothing_measured_is_calm() -> None:
    """A machine that tells nothing is never under pressure."""
    assert after(Pressure(), [], Milliseconds(5)) == Pressure()


@given(looks)
def test_no_level_is_skipped(seen: list[tuple[Space, int]]) -> None:
    """Up only while it is short, down only after CALM_MS of calm, one at a time, and never to and fro in between."""
    pressure, now, calm_since = Pressure(), 0, None
    for each, pause in seen:
        now += pause
        before, pressure = pressure, after(pressure, [each], Milliseconds(now))
        calm_since = (calm_since or now) if each is CALM else None
        step = pressure.level - before.level
        assert step in (-1, 0, 1)
        if step > 0:
            assert each in (SHORT, SEVERE)
            assert each is SEVERE or pressure.level <= Level.DROP
            assert before.level is Level.NONE or now - before.since >= SEVERE_STEP_MS
        if step < 0:
            assert calm_since is not None
            assert now - calm_since >= CALM_MS
            assert now - before.since >= CALM_MS
