"""Tests of the samplers: seeds, temperatures, grammars that repair, and what closing gives back."""

import ctypes
import random
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmasos_edge.engine.grammar import grammar_of
from llmasos_edge.engine.llama import LlamaContext, LlamaModel
from llmasos_edge.engine.protocol import Sampling
from llmasos_edge.engine.sampling import Sampler, _Greedy
from llmasos_edge.errors import BadRequest

PROMPT = array("i", range(2000, 2020))
Generate = Callable[..., list[int]]


@pytest.fixture
def generate(model: LlamaModel) -> Iterator[Generate]:
    """Generates from PROMPT in a context of its own."""
    context = LlamaContext(model, 512, 2, "q8_0", 1)

    def run(sampler: Sampler, count: int = 12, start: tuple[int, ...] = ()) -> list[int]:
        context.clear()
        tokens = [*PROMPT, *start]
        context.decode([(0, tokens, 0, True)])
        index, chosen = len(tokens) - 1, list(start)
        while len(chosen) < count:
            chosen.append(sampler.sample(context, index))
            if model.ends(chosen[-1]):
                break
            context.decode([(0, [chosen[-1]], len(PROMPT) + len(chosen) - 1, True)])
            index = 0
        return chosen

    yield run
    context.close()


@pytest.fixture
def sampler(model: LlamaModel) -> Iterator[Callable[..., Sampler]]:
    made: list[Sampler] = []

    def make(grammar: str | None = None, **sampling: float) -> Sampler:
        made.append(Sampler(model, Sampling(**sampling), grammar))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


class Row:
    """A context with one row of logits."""

    def __init__(self, values: list[float]) -> None:
        self.values = (ctypes.c_float * len(values))(*values)

    def logits(self, _index: int) -> object:
        return ctypes.cast(self.values, ctypes.POINTER(ctypes.c_float))


@pytest.mark.parametrize("size", [3, 4, 5, 31, 997])
def test_greedy_finds_the_greatest(sampler: Callable[..., Sampler], size: int) -> None:
    """Wherever it is; of equals the first."""
    choice = random.Random(size)
    greedy = _Greedy(sampler(temperature=0.0)._chain, size)
    for place in range(size):
        values = [choice.uniform(-9, 9) for _ in range(size)]
        values[place] = 10.0
        assert greedy.sample(Row(values), 0) == place  # type: ignore[arg-type]
    assert greedy.sample(Row([-1.0] * size), 0) == 0  # type: ignore[arg-type]


def test_greedy_without_logits_fails_and_lives(model: LlamaModel, sampler: Callable[..., Sampler]) -> None:
    """A batch position that has none is an error of ours, not the end of the process."""
    context = LlamaContext(model, 256, 2, "q8_0", 1)
    context.decode([(0, PROMPT, 0, True)])
    with pytest.raises(ValueError, match="NULL"):
        sampler(temperature=0.0).sample(context, 0)
    context.close()


def test_the_seed_decides(generate: Generate, sampler: Callable[..., Sampler]) -> None:
    """Same seed, same tokens; another seed, others; and 64-bit seeds are taken."""
    one, again, other = (generate(sampler(temperature=1.5, top_k=0, seed=seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert generate(sampler(temperature=1.0, seed=2**63 + 5))


def test_temperature_zero_is_greedy_for_any_seed(generate: Generate, sampler: Callable[..., Sampler]) -> None:
    """The likeliest token, whatever the seed; a tiny temperature comes to the same."""
    greedy = generate(sampler(temperature=0.0, seed=1))
    assert greedy == generate(sampler(temperature=0.0, seed=2)) == generate(sampler(temperature=1e-6, seed=3))


def test_extreme_temperatures_do_no_harm(generate: Generate, sampler: Callable[..., Sampler]) -> None:
    """A huge temperature still chooses among the best `top_k`."""
    assert len(generate(sampler(temperature=1e9, top_k=5, top_p=1.0, min_p=0.0), count=5)) == 5


def test_an_interrupted_run_goes_on_as_it_would_have(generate: Generate, sampler: Callable[..., Sampler]) -> None:
    """A sampler outlives its sequence: state lost and computed anew after some tokens changes nothing."""
    whole = generate(sampler(temperature=1.0, seed=7))
    kept = sampler(temperature=1.0, seed=7)
    start = generate(kept, count=5)
    assert generate(kept, start=tuple(start)) == whole


def test_a_grammar_repairs_what_it_rejects(
    generate: Generate, sampler: Callable[..., Sampler], model: LlamaModel
) -> None:
    """A model that speaks nonsense answers with one of the three words, at any temperature, and stops."""
    grammar = grammar_of({"enum": ["red", "green", "blue"]})
    for temperature in (0.0, 2.0):
        *tokens, last = generate(sampler(grammar, temperature=temperature, seed=4), count=20)
        assert model.ends(last)
        assert b"".join(map(model.piece, tokens)) in {b'"red"', b'"green"', b'"blue"'}


def test_a_grammar_that_does_not_parse_is_refused(sampler: Callable[..., Sampler]) -> None:
    """llama.cpp answers with NULL, which would kill the process in a chain."""
    for bad in ("root ::= [", 'root ::= "\\."', "root ::= nothing", "other ::= [a]", "root ::= root [a]"):
        with pytest.raises(BadRequest, match="simplify"):
            sampler(bad)


def resident() -> int:
    """Kilobytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def test_closing_gives_the_memory_back(model: LlamaModel) -> None:
    """Thousands of tasks leave nothing behind."""
    grammar = grammar_of({"type": "string", "maxLength": 500})

    def cycle(times: int) -> None:
        for _ in range(times):
            Sampler(model, Sampling(), grammar).close()

    cycle(50)
    before = resident()
    cycle(300)
    assert resident() - before < 2000
