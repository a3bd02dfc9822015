"""Tests of the context switch: saved in pieces and restored with the same bits, and never what is another's."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest

from llmasos_edge.engine.answer_text import AnswerText
from llmasos_edge.engine.kv_pool import KvPool
from llmasos_edge.engine.llama import L
from llmasos_edge.engine.protocol import Program, Sampling
from llmasos_edge.engine.switcher import Switcher
from llmasos_edge.engine.work import Work
from llmasos_edge.kernel.hal import Piece, Restored, Save, Saved
from llmasos_edge.kernel.memory.extent import CONTROL_PAGE, Extent
from llmasos_edge.kernel.units import SegmentId, SequenceId, TaskId, Tokens
from tests.engine.conftest import MakePool

if TYPE_CHECKING:
    Alone = Callable[[array[int], int], list[bytes]]

ROOM = 2 << 20  # of each segment
PROGRAM = Program(Sampling(), 100, messages=(), owner="a")
ALL = Tokens(1 << 20)


class Bench:
    """A switcher with its pool and arena; what it told."""

    def __init__(self, pool: KvPool, arena: mmap.mmap) -> None:
        self.pool, self.arena = pool, arena
        self.told: list[Saved | Restored] = []
        self.switcher = Switcher(pool, arena, self.told.append)
        self.pieces: list[Piece] = []
        self._segments = 0

    def work(self, tokens: array[int], *, shared: int = 0, name: str = "t") -> Work:
        return Work(
            TaskId(name), PROGRAM, tokens, 100, cast("Any", None), AnswerText(()), len(tokens), 7 * bool(shared), shared
        )

    def enter(self, work: Work, sequence: int = 0, pieces: tuple[Piece, ...] | None = None) -> Work:
        self.switcher.switch_in(work, SequenceId(sequence), tuple(self.pieces) if pieces is None else pieces)
        return work

    def step(self, work: Work, chunk: int = 16) -> bytes:
        """One step of a task; its logits, if it has any."""
        self.switcher.proceed(work)
        count = min(chunk, work.ahead)
        part, output = work.tokens[work.computed : work.computed + count], count == work.pending
        assert self.pool.decode([(cast("int", work.target), part, work.computed, output)]) == 0
        work.computed += count
        if not output:
            return b""
        row = L.llama_get_logits_ith(self.pool.context.pointer, count - 1)
        bits = ctypes.string_at(row, self.pool._model.vocabulary_size * 4)
        values = array("f", bits)
        work.tokens.append(values.index(max(values)))
        return bits

    def answer(self, work: Work, count: int) -> list[bytes]:
        """The logits of so many further tokens."""
        rows: list[bytes] = []
        while len(rows) < count:
            rows += filter(None, [self.step(work)])
        return rows

    def save(self, work: Work, start: int | None = None, size: int = ROOM) -> Saved:
        """Take the sequence away, and save what the pieces so far do not have."""
        begin = Tokens((self.pieces[-1].end if self.pieces else 0) if start is None else start)
        extent = Extent(self._segments * ROOM, size)
        self._segments += 1
        self.switcher.switch_out(work, Save(SegmentId(self._segments), begin, extent))
        saved = self.told[-1]
        assert isinstance(saved, Saved)
        if saved.size:
            numbers = (saved.size, saved.start, saved.end, saved.checksum)
            self.pieces.append(Piece(saved.segment, extent, *numbers))
        return saved

    def room(self, piece: Piece) -> memoryview:
        return memoryview(self.arena)[CONTROL_PAGE + piece.extent.offset :][: piece.size]


@pytest.fixture
def arena() -> Iterator[mmap.mmap]:
    memfd = os.memfd_create("arena")
    os.ftruncate(memfd, CONTROL_PAGE + 16 * ROOM)
    with mmap.mmap(memfd, 0) as arena:
        yield arena
    os.close(memfd)


@pytest.fixture
def bench(make_pool: MakePool, arena: mmap.mmap) -> Bench:
    return Bench(make_pool(2048), arena)


@pytest.fixture
def alone(make_pool: MakePool, arena: mmap.mmap) -> Alone:
    """The logits of an undisturbed run."""

    def run(tokens: array[int], count: int) -> list[bytes]:
        fresh = Bench(make_pool(2048), arena)
        return fresh.answer(fresh.enter(fresh.work(array("i", tokens))), count)

    return run


def words(seed: int, count: int) -> array[int]:
    choice = random.Random(seed)
    return array("i", (choice.randrange(1000, 20000) for _ in range(count)))


def kept(bench: Bench) -> int:
    told = [it for it in bench.told if isinstance(it, Restored)]
    return told[-1].kept


@pytest.mark.parametrize("shared", [0, 40])
def test_three_turns_save_what_is_new_and_go_on_with_the_same_bits(
    make_pool: MakePool, arena: mmap.mmap, alone: Alone, shared: int
) -> None:
    """Each turn is restored by a worker that has not seen it, in pieces, behind a prefix that it has to compute."""
    talk, pieces = words(1, 60), list[Piece]()
    for turn in range(4):
        bench = Bench(make_pool(2048), arena)
        bench.pieces, bench._segments = pieces, turn
        bench.pool.take(3, "other", words(9, 9))
        bench.pool.decode([(3, words(9, 9), 0, False)])  # into other cells than before
        work = bench.enter(bench.work(array("i", talk), shared=shared), turn % 3)
        expected = alone(talk, 5)
        assert bench.answer(work, 5) == expected
        before = pieces[-1].end if pieces else shared
        if turn:
            assert bench.told == [Restored(TaskId("t"), Tokens(before))]
            assert work.cached == before - shared
        saved = bench.save(work)
        assert (saved.start, saved.end) == (before, work.computed)
        talk = work.tokens + words(turn, 20)
    assert [piece.start for piece in pieces] == [shared, *(piece.end for piece in pieces[:-1])]


def test_a_difference_in_the_middle_truncates_there(bench: Bench, alone: Alone) -> None:
    """The piece that differs is restored as far as it agrees; of those behind it nothing is."""
    talk = words(1, 90)
    for end in (30, 60, 90):
        work = bench.enter(bench.work(talk[:end]))
        bench.answer(work, 1)
        bench.save(work)
    other = talk[:45] + words(2, 30)
    work = bench.enter(bench.work(array("i", other)))
    assert bench.told[-1] == Restored(TaskId("t"), Tokens(45))
    assert (work.computed, work.cached) == (45, 45)
    assert bench.answer(work, 5) == alone(other, 5)


def test_the_last_token_of_a_prompt_is_computed_again(bench: Bench, alone: Alone) -> None:
    """Its logits are wanted; what is kept goes further."""
    talk = words(1, 50)
    work = bench.enter(bench.work(array("i", talk)))
    bench.answer(work, 3)
    bench.save(work)
    again = bench.enter(bench.work(array("i", talk)))
    assert (again.computed, kept(bench)) == (49, 50)
    assert bench.answer(again, 3) == alone(talk, 3)


@pytest.mark.parametrize("at", [0, 4, 8, 12, 16, 24, 32, 63, 300, 5000, -1])
def test_a_corrupt_byte_costs_a_recompute(bench: Bench, alone: Alone, at: int) -> None:
    """In magic, version, start, count, hash, size, tokens, state: the piece is named, those before it are kept."""
    talk = words(1, 80)
    for end in (40, 80):
        work = bench.enter(bench.work(talk[:end]))
        bench.answer(work, 1)
        bench.save(work)
    bench.room(bench.pieces[1])[at] ^= 4
    work = bench.enter(bench.work(array("i", talk)))
    assert bench.told[-1] == Restored(TaskId("t"), Tokens(40), (bench.pieces[1].segment,))
    assert bench.answer(work, 5) == alone(talk, 5)


def test_a_piece_of_another_prefix_is_not_restored(bench: Bench, alone: Alone) -> None:
    """The same tokens behind another beginning have another state: the hash of what is before tells."""
    talk = words(1, 80)
    work = bench.enter(bench.work(array("i", talk)))
    bench.answer(work, 1)
    bench.save(work, start=40)
    other = words(2, 40) + talk[40:]
    work = bench.enter(bench.work(array("i", other)))
    assert bench.answer(work, 5) == alone(other, 5)
    assert bench.told[-1] == Restored(TaskId("t"), Tokens(40))
    assert work.cached == 0


def test_what_is_in_the_cells_already_is_not_restored(bench: Bench, alone: Alone) -> None:
    """A prefix that reaches as far as the pieces wins; that they agree is told, though one is corrupt."""
    talk = words(1, 60)
    work = bench.enter(bench.work(array("i", talk)))
    bench.answer(work, 1)
    bench.save(work)
    work = bench.enter(bench.work(array("i", talk)), 0, ())
    bench.answer(work, 1)
    bench.switcher.leave(work)
    bench.room(bench.pieces[0])[-1] ^= 1
    filled = bench.pool._filled
    longer = talk + words(3, 9)
    work = bench.enter(bench.work(array("i", longer)))
    assert bench.told[-1] == Restored(TaskId("t"), Tokens(60))
    assert (work.computed, bench.pool._filled) == (60, filled)
    assert bench.answer(work, 5) == alone(longer, 5)


@pytest.mark.parametrize("end", ["out", "saved", "forgotten"])
def test_pieces_whose_turn_never_came_are_kept(bench: Bench, end: str) -> None:
    """A task loses its sequence while the prefix before its pieces is still being computed."""
    talk = words(1, 80)
    work = bench.enter(bench.work(array("i", talk), shared=40))
    bench.answer(work, 1)
    bench.save(work)
    bench.pool.rebuild(1024)
    bench.pool._drop_idle()
    work = bench.enter(bench.work(array("i", talk), shared=40))
    bench.step(work)
    del bench.told[:]
    if end == "out":
        bench.switcher.switch_out(work, None)
    elif end == "saved":
        assert bench.save(work, start=80).size == 0
    else:
        bench.switcher.leave(work)
    assert bench.told[0] == Restored(TaskId("t"), Tokens(80))
    assert work.sequence is None
    work = bench.enter(bench.work(array("i", talk), shared=40))
    assert (work.computed, work.sharing) == (16, True)


@pytest.mark.parametrize("size", [4096, 64, 0])
def test_a_state_that_does_not_fit_is_lost(bench: Bench, size: int) -> None:
    """Nothing is written, the sequence is let go of, and 0 says so."""
    work = bench.enter(bench.work(words(1, 60)))
    bench.answer(work, 1)
    assert bench.save(work, size=size).size == 0
    assert (work.computed, work.sequence, bench.pool.context.length(0)) == (0, None, 0)
    assert not any(bench.arena[CONTROL_PAGE : CONTROL_PAGE + 8192])


def test_own_work_does_not_count_as_cached(bench: Bench) -> None:
    """A task that is parked and restored has found nothing: it had computed that itself."""
    work = bench.enter(bench.work(words(1, 60)))
    bench.step(work)
    bench.save(work)
    bench.enter(work, 1)
    assert (work.computed, work.cached) == (16, 0)
