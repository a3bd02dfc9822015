"""Tests of native/attention.c: the same bits as llama.cpp's own attention, and used where they are."""

import ctypes
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos_edge.engine import attention
from llmasos_edge.engine.llama import L, LlamaContext, LlamaModel

CELLS, SEQUENCES, SYSTEM = 2048, 16, 15


@pytest.fixture
def library(model: LlamaModel) -> Iterator[ctypes.CDLL]:
    """The one that `./run setup` has built, in use again after the test."""
    assert L.attention is not None, "native/build has failed: see what `./run setup` said"
    assert model.attention == "shared"
    yield L.attention
    L.attention.attention_use(1)


class Run:
    """Decodes random tokens, and keeps what comes of them."""

    def __init__(self, model: LlamaModel, kv: str, threads: int) -> None:
        self._model, self._chance = model, random.Random(7)
        self.context = LlamaContext(model, CELLS, SEQUENCES, kv, threads)
        self.rows: list[bytes] = []

    def decode(self, *counts: tuple[int, int]) -> None:
        """So many tokens of each of these sequences."""
        at, entries = -1, []
        for sequence, count in counts:
            tokens = [self._chance.randrange(5, 40000) for _ in range(count)]
            entries.append((sequence, tokens, self.context.length(sequence), True))
        assert self.context.decode(entries) == 0
        for _, count in counts:
            at += count
            self.rows.append(ctypes.string_at(self.context.logits(at), 4 * self._model.vocabulary_size))


def scenario(model: LlamaModel, kv: str, threads: int) -> list[bytes]:
    """Sequences of different lengths behind a common prefix and without one, with holes, in turns, and with chunks."""
    run = Run(model, kv, threads)
    run.decode((SYSTEM, 200))
    for sequence in range(5):
        run.context.copy(SYSTEM, sequence)
    run.decode(*((sequence, 3 + 11 * sequence) for sequence in range(4)))
    run.decode((6, 300))
    run.context.remove(1)
    run.context.remove(SYSTEM)
    for step in range(10):
        run.decode(*((sequence, 1) for sequence in (0, 2, 3, 4, 6) if sequence % 5 != step % 5))
    run.decode((0, 1))
    run.decode((4, 400), (0, 1))
    run.context.close()
    return run.rows


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bits_are_the_originals(model: LlamaModel, library: ctypes.CDLL, threads: int) -> None:
    """Of every row of logits, with as many threads."""
    library.attention_use(0)
    expected = scenario(model, "q8_0", 1)
    library.attention_use(1)
    served = library.attention_served()
    assert scenario(model, "q8_0", threads) == expected
    assert library.attention_served() > served


def test_what_is_not_served_goes_to_the_original(model: LlamaModel, library: ctypes.CDLL) -> None:
    """Cells of f16."""
    served = library.attention_served()
    assert scenario(model, "f16", 1)
    assert library.attention_served() == served


def test_the_exponential_is_the_c_librarys(library: ctypes.CDLL) -> None:
    """At points all over the range that attention needs."""
    assert library.attention_exponential_agrees() == 1


def test_other_bits_are_refused(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that computes something else is not used."""
    computed = iter([b"these bits", b"those bits"])
    monkeypatch.setattr(attention, "_compute", lambda _: next(computed))
    assert not attention.use.__wrapped__(library, L._lib)


def test_nothing_built(tmp_path: Path) -> None:
    """llama.cpp's own attention is used."""
    assert attention.load(tmp_path) is None
    assert not attention.use(None, L._lib)
