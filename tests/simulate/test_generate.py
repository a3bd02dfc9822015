"""Tests of made-up workloads: their load, their lengths, and that a seed makes them again."""

from collections import Counter
from itertools import pairwise

import pytest
from msgspec.structs import replace

from llmasos_edge.services.workload import Arrival
from llmasos_edge.simulate.generate import KINDS, MACHINE, MAX_TOKENS, PATTERNS, SMOLLM2, Recipe, generate


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_seed_makes_the_same_tasks(pattern: str) -> None:
    """And another one makes others."""
    one, same, other = (generate(Recipe(pattern, 50, seed=seed)).arrivals for seed in (3, 3, 4))
    assert one == same != other
    assert len(one) == 50
    assert sorted(one, key=lambda each: each.arrival_ms) == one


def span(pattern: str, load: float, tasks: int = 4000) -> int:
    return generate(Recipe(pattern, tasks, load)).arrivals[-1].arrival_ms


@pytest.mark.parametrize("pattern", PATTERNS)
def test_twice_the_load_comes_in_half_the_time(pattern: str) -> None:
    """All patterns bring the same work in the same time, bursts as far as chance lets them."""
    assert span(pattern, 0.5) == pytest.approx(2 * span(pattern, 1.0), rel=0.001)
    assert span(pattern, 1.0) == pytest.approx(span("steady", 1.0), rel=0.15)


def gaps(pattern: str) -> list[int]:
    moments = [each.arrival_ms for each in generate(Recipe(pattern, 2000)).arrivals]
    return [after - before for before, after in pairwise(moments)]


def test_patterns_differ_by_their_gaps() -> None:
    """Steady ones are alike, most tasks of a burst come at once."""
    assert max(gaps("steady")) - min(gaps("steady")) <= 1
    assert Counter(gaps("bursts"))[0] > 1600
    assert Counter(gaps("poisson"))[0] < 100


def test_mixed_lengths_are_around_those_of_their_kind() -> None:
    """Each class has its share of the tasks."""
    arrivals = generate(Recipe(tasks=4000)).arrivals
    for kind in KINDS:
        mine = sorted(each.prompt for each in arrivals if each.priority == kind.priority)
        assert len(mine) / len(arrivals) == pytest.approx(kind.share, abs=0.02)
        assert mine[len(mine) // 2] == pytest.approx(kind.prompt, rel=0.2)
        assert mine[0] < kind.prompt / 2 < kind.prompt * 2 < mine[-1]


def test_fixed_lengths_are_those_of_their_kind() -> None:
    """Nothing is drawn."""
    lengths = {(each.priority, each.prompt, each.output) for each in generate(Recipe(lengths="fixed")).arrivals}
    assert lengths == {(kind.priority, kind.prompt, kind.output) for kind in KINDS}


def test_every_task_fits_its_model() -> None:
    """Also one with a small context."""
    machine = replace(MACHINE, models=(replace(SMOLLM2, context=700),))
    for each in generate(Recipe(tasks=2000, sessions=0.5), machine).arrivals:
        assert each.prompt + each.output < 700
        assert 1 <= each.output <= MAX_TOKENS


def test_conversations_go_on_from_what_was_said() -> None:
    """A turn's prompt is all of it and something new; one that is long enough is followed by a new one."""
    arrivals = generate(Recipe(tasks=2000, sessions=0.7, clients=3)).arrivals
    turns = [each for each in arrivals if each.session is not None]
    assert len(turns) == pytest.approx(1400, abs=80)
    before: dict[tuple[str, str | None], Arrival] = {}
    for each in turns:
        last = before.get((each.client, each.session))
        assert last is None or each.prompt > last.prompt + last.output
        before[each.client, each.session] = each
    assert len(before) > 3
