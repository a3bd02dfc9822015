"""Tests of the KV pool: prefixes found again and shared, saved state, the pool made anew, and bits that stay."""

from __future__ import annotations

import ctypes
import random
from array import array
from typing import TYPE_CHECKING

import pytest

from llmasos_edge.engine.kv_pool import PREFIX_MIN, PREFIXES, WASTE, KvPool
from llmasos_edge.engine.llama import L
from llmasos_edge.errors import EngineFailed, Panic

if TYPE_CHECKING:
    from collections.abc import Callable

    MakePool = Callable[..., KvPool]


class Run:
    """A task: greedy tokens, and the bits of all logits that chose them."""

    def __init__(self, prompt: array[int], count: int, owner: str = "a", number: int = 0, shared: int = 0) -> None:
        self.tokens, self.prompt, self.count, self.owner = array("i", prompt), prompt, count, owner
        self.number, self.shared = number, shared
        self.sequence = self.target = -1
        self.computed = self.reused = 0
        self.bits: list[bytes] = []

    @property
    def done(self) -> bool:
        return len(self.tokens) - len(self.prompt) >= self.count


def begin(pool: KvPool, run: Run, sequence: int) -> Run:
    run.sequence = sequence
    run.target, run.computed = pool.take(sequence, run.owner, run.tokens, run.number, run.shared)
    run.reused = run.computed
    return run


def step(pool: KvPool, runs: list[Run], chunk: int = 48) -> None:
    """One batch: a chunk of each prompt, or one token. The first of those who wait for a prefix computes it."""
    join(pool, runs)
    runs = [run for at, run in enumerate(runs) if run.target not in {other.target for other in runs[:at]}]
    ends = [run.shared if run.target != run.sequence else len(run.tokens) for run in runs]
    parts = [run.tokens[run.computed : min(end, run.computed + chunk)] for run, end in zip(runs, ends, strict=True)]
    entries = [
        (run.target, part, run.computed, run.computed + len(part) == len(run.tokens))
        for run, part in zip(runs, parts, strict=True)
    ]
    assert pool.decode(entries) == 0
    index = -1
    for run, part, entry in zip(runs, parts, entries, strict=True):
        index += len(part)
        run.computed += len(part)
        if entry[3]:
            row = L.llama_get_logits_ith(pool.context.pointer, index)
            run.bits.append(ctypes.string_at(row, pool_vocabulary(pool) * 4))
            values = array("f", run.bits[-1])
            run.tokens.append(values.index(max(values)))


def join(pool: KvPool, runs: list[Run]) -> None:
    """Those whose shared prefix is whole go on in their own sequences."""
    for run in runs:
        if run.target != run.sequence:
            run.computed = pool.shared_length(run.number)
            if run.computed == run.shared:
                pool.join(run.sequence, run.number)
                run.target = run.sequence


def pool_vocabulary(pool: KvPool) -> int:
    return pool._model.vocabulary_size


def finish(pool: KvPool, run: Run) -> Run:
    while not run.done:
        step(pool, [run])
    return run


def leave(pool: KvPool, run: Run) -> None:
    pool.leave(run.sequence, run.owner, run.tokens[: run.computed])


def words(choice: random.Random, count: int) -> array[int]:
    return array("i", (choice.randrange(1000, 20000) for _ in range(count)))


def undisturbed(make_pool: MakePool, run: Run) -> list[bytes]:
    """The same run, alone in a pool of its own."""
    pool = make_pool(512)
    return finish(pool, begin(pool, Run(run.prompt, run.count), 0)).bits


PROMPT = words(random.Random(1), 40)


def test_a_prefix_is_computed_once(make_pool: MakePool) -> None:
    """What an ended task computed is found by its owner's next prompt, all but the last token."""
    pool = make_pool()
    leave(pool, finish(pool, begin(pool, Run(PROMPT, 4), 0)))
    longer = begin(pool, Run(PROMPT + words(random.Random(2), 9), 3), 1)
    assert longer.reused == len(PROMPT)
    assert finish(pool, longer).bits == undisturbed(make_pool, longer)
    assert pool.take(2, "a", PROMPT) == (2, len(PROMPT) - 1)


def test_prefixes_belong_to_their_owner(make_pool: MakePool) -> None:
    """Nobody can find out, by its speed, what another one has asked."""
    pool = make_pool()
    leave(pool, finish(pool, begin(pool, Run(PROMPT, 4, "alice"), 0)))
    assert pool.take(1, "bob", PROMPT) == (1, 0)


def test_short_prefixes_are_not_worth_a_copy(make_pool: MakePool) -> None:
    """Below PREFIX_MIN tokens nothing is kept or shared."""
    pool = make_pool()
    leave(pool, finish(pool, begin(pool, Run(PROMPT[: PREFIX_MIN - 3], 2), 0)))
    assert pool.take(1, "a", PROMPT) == (1, 0)
    leave(pool, finish(pool, begin(pool, Run(PROMPT, 2, "b"), 2)))
    assert pool.take(3, "b", PROMPT[: PREFIX_MIN - 1] + PROMPT[:9]) == (3, 0)


def test_old_prefixes_make_room_for_new_ones(make_pool: MakePool) -> None:
    """The list is bounded, and a conversation's next turn replaces the one before it."""
    pool = make_pool(2048)
    for turn in range(PREFIXES + 3):
        leave(pool, finish(pool, begin(pool, Run(PROMPT[:20] + array("i", [turn + 5] * 4), 2), 0)))
    assert len(pool._prefixes) == PREFIXES
    before = len(pool._prefixes)
    grown = Run(pool._prefixes[-1].tokens + PROMPT, 2)
    leave(pool, finish(pool, begin(pool, grown, 1)))
    assert len(pool._prefixes) == before
    assert len({prefix.sequence for prefix in pool._prefixes}) == before


@pytest.mark.parametrize(("cells", "exact"), [(4096, False), (512, True)])
@pytest.mark.parametrize("seed", [1, 2])
def test_nobody_changes_anothers_bits(make_pool: MakePool, cells: int, exact: bool, seed: int) -> None:
    """Tasks come and go, share prefixes, and are batched in all mixes: the logits of each are those of a run alone.

    So it is while the pool is not full; an exact model pays for it when it is.
    """
    choice, pool = random.Random(seed), make_pool(cells, sequences=6, exact=exact)
    base = words(choice, 40)
    waiting = [
        Run(base[: choice.choice([0, 20, 40])] + words(choice, choice.randrange(3, 50)), choice.randrange(2, 20))
        for _ in range(12)
    ]
    free, live, ended = list(range(6)), list[Run](), list[Run]()
    while waiting or live:
        if waiting and free and (not live or choice.random() < 0.3):
            live.append(begin(pool, waiting.pop(), free.pop(0)))
        step(pool, live)
        for run in [run for run in live if run.done]:
            live.remove(run)
            leave(pool, run)
            free.append(run.sequence)
            ended.append(run)
    assert sum(run.reused for run in ended) > 0
    assert [run.bits == undisturbed(make_pool, run) for run in ended] == [True] * 12


def test_cells_taken_in_turns_are_gathered(make_pool: MakePool) -> None:
    """Tasks that decode together, long enough to be gathered several times, while others come with prompts, leave
    prefixes and take them: every bit is that of a run alone, and each sequence lies in rows.
    """
    choice, pool = random.Random(3), make_pool(4096, sequences=8)
    runs = [begin(pool, Run(words(choice, 20 + number), 160), number) for number in range(5)]
    old = Run(words(choice, 20), 3, "old")
    for turn in range(150):
        step(pool, runs, chunk=12 if turn < 60 else 48)
        if turn == 30:
            runs.append(begin(pool, old, 5))
        if turn == 37:
            leave(pool, runs.pop())
        if turn == 45:
            runs.insert(0, begin(pool, Run(old.tokens + words(choice, 9), 120, "old"), 6))
        if turn == 90:
            leave(pool, runs.pop(1))
        if turn == 110:
            runs.append(begin(pool, Run(words(choice, 90), 60), 0))
            step(pool, runs)
            step(pool, runs)
            assert pool._live[0].tail == 90  # a prompt lies in a row: it is not moved
    pool._settle()
    assert runs[0].reused == old.computed
    assert [run.bits == undisturbed(make_pool, run)[: len(run.bits)] for run in runs] == [True] * 6
    assert max(rows(pool, run.sequence) for run in runs) <= 20  # of 150


def used(pool: KvPool) -> int:
    """Cells that are taken by any sequence."""
    size = pool.context.state_size(-1)
    state = (ctypes.c_uint8 * size)()
    pool.context.save(-1, ctypes.addressof(state), size)
    return memoryview(state).cast("B")[:16].cast("i")[3]


def saved(pool: KvPool, sequence: int, start: int = 0) -> memoryview:
    """A sequence's state from `start` on."""
    room = bytearray(4 << 20)

    def write(size: int, copy: Callable[[int, int], int]) -> int:
        return copy(ctypes.addressof(ctypes.c_char.from_buffer(room)), size)

    return memoryview(room)[: pool.save(sequence, start, write)]


def rows(pool: KvPool, sequence: int) -> int:
    """In how many rows of neighbouring cells a sequence lies.

    The saved state of all sequences begins with four numbers, the last one how many cells are in use, and has for each,
    in ascending order, its position, the number of its sequences, and these.
    """
    size = pool.context.state_size(-1)
    state = (ctypes.c_uint8 * size)()
    pool.context.save(-1, ctypes.addressof(state), size)
    numbers = memoryview(state).cast("B")[: size // 4 * 4].cast("i")
    at, found, before = 4, 0, False
    for _ in range(numbers[3]):
        count = numbers[at + 1]
        here = sequence in numbers[at + 2 : at + 2 + count]
        found += here and not before
        at, before = at + 2 + count, here
    return found


def test_no_turn_lands_below_its_prefix(make_pool: MakePool) -> None:
    """With nobody running, the oldest prefix goes; a later one's next turn must not fill the cells that it had."""
    choice, pool = random.Random(5), make_pool(4096)
    talks = [words(choice, 30) for _ in range(PREFIXES + 1)]
    for talk in talks:
        leave(pool, finish(pool, begin(pool, Run(talk, 2), 0)))
    for talk in talks[5:8]:
        turn = finish(pool, begin(pool, Run(talk + words(choice, 25), 8), 0))
        assert turn.reused == len(talk)
        assert turn.bits == undisturbed(make_pool, turn)
        leave(pool, turn)


def test_conversations_one_after_another_keep_their_bits(make_pool: MakePool) -> None:
    """Turn by turn in a small pool, which is packed on the way."""
    choice, pool = random.Random(5), make_pool(1024)
    talks = [words(choice, 25) for _ in range(8)]
    reused = 0
    for turn in range(24):
        talk = choice.randrange(len(talks))
        run = finish(pool, begin(pool, Run(talks[talk] + words(choice, 8), 4), turn % 4))
        leave(pool, run)
        assert run.bits == undisturbed(make_pool, run)
        talks[talk], reused = run.tokens, reused + run.reused
    assert reused > 0


def test_waste_is_packed_beside_who_runs(make_pool: MakePool) -> None:
    """Cells of ended tasks do not pile up, the prefix used last stays, and a task that runs keeps its bits."""
    choice, pool = random.Random(11), make_pool(2048)
    runs = begin(pool, Run(words(choice, 60), 30, "long"), 0)
    leave(pool, finish(pool, begin(pool, Run(PROMPT, 2), 1)))
    for turn in range(25):
        leave(pool, finish(pool, begin(pool, Run(words(choice, 90), 2, f"{turn}"), 2)))
        again = begin(pool, Run(PROMPT + words(choice, 3), 1), 3)
        assert again.reused == len(PROMPT)
        leave(pool, finish(pool, again))
        step(pool, [runs], chunk=60)
        assert pool._filled < 2048 // 8 + WASTE + 2 * (90 + 60)
    finish(pool, runs)
    assert runs.bits == undisturbed(make_pool, runs)


def test_only_what_is_left_is_kept(make_pool: MakePool) -> None:
    """A task may leave less than it computed: no more is found again."""
    pool = make_pool()
    run = finish(pool, begin(pool, Run(PROMPT, 9), 0))
    pool.leave(0, "a", run.tokens[: len(PROMPT)])
    assert pool.take(1, "a", run.tokens) == (1, len(PROMPT))


def test_a_full_pool_frees_what_ended_tasks_left(make_pool: MakePool) -> None:
    """Prefixes and buried cells give way to a task that needs them, for a step and for a restore."""
    pool = make_pool(256)
    parked = finish(pool, begin(pool, Run(PROMPT, 2), 3))
    state = saved(pool, 3)
    pool.release(3)
    for turn in range(3):
        leave(pool, finish(pool, begin(pool, Run(words(random.Random(turn), 50), 2, f"{turn}"), 0)))
    pool.take(3, "nobody", parked.tokens)
    assert pool.restore(3, state, 0, parked.computed)
    step(pool, [parked])
    big = begin(pool, Run(words(random.Random(9), 180), 2, "big"), 1)
    finish(pool, big)
    assert not pool._prefixes


def test_more_than_the_pool_holds_is_a_status(make_pool: MakePool) -> None:
    """When all cells are held by live sequences, there is nothing to free."""
    pool = make_pool(256)
    finish(pool, begin(pool, Run(words(random.Random(3), 200), 1), 0))
    pool.take(1, "a", PROMPT)
    assert pool.decode([(1, words(random.Random(4), 100), 0, True)]) == 1


def test_save_and_restore_change_nothing(make_pool: MakePool) -> None:
    """Saved in the middle, and restored into another sequence beside another task."""
    pool = make_pool()
    run = begin(pool, Run(PROMPT, 12), 0)
    for _ in range(5):
        step(pool, [run])
    state = saved(pool, 0)
    pool.release(0)
    other = begin(pool, Run(words(random.Random(6), 30), 9, "b"), 0)
    step(pool, [other])
    pool.take(2, "nobody", run.tokens)
    assert pool.restore(2, state, 0, run.computed)
    run.sequence = run.target = 2
    while not run.done:
        step(pool, [run, other])
    assert run.bits == undisturbed(make_pool, run)


@pytest.mark.parametrize("cells", [1024, 512, 2048])
def test_a_pool_made_anew_changes_nothing(make_pool: MakePool, cells: int) -> None:
    """With the same, fewer or more cells: what was saved goes on with the same bits, and shared prefixes stay."""
    pool = make_pool(1024)
    runs = [begin(pool, Run(PROMPT + words(random.Random(n), 20 + n), 8, "a", 7, len(PROMPT)), n) for n in range(3)]
    for _ in range(4):
        step(pool, runs)
    states = [saved(pool, run.sequence, run.shared) for run in runs]
    for run in runs:
        pool.release(run.sequence)
    pool.rebuild(cells)
    assert pool.context.cells == cells
    for run, state in zip(runs, states, strict=True):
        assert pool.take(run.sequence, "a", run.tokens, 7, run.shared) == (run.sequence, run.shared)
        assert pool.restore(run.sequence, state, run.shared, run.computed)
    while not runs[0].done:
        step(pool, runs)
    assert [run.bits == undisturbed(make_pool, run) for run in runs] == [True] * 3


def test_a_pool_in_use_is_not_made_anew(make_pool: MakePool) -> None:
    """The kernel takes all sequences away first."""
    pool = make_pool(1024)
    begin(pool, Run(PROMPT, 1), 0)
    with pytest.raises(Panic, match="1 sequences are in use"):
        pool.rebuild(256)


def share(pool: KvPool, count: int, length: int, *, choice: random.Random, prompt: array[int] = PROMPT) -> list[Run]:
    """Tasks that begin with the same `length` tokens, begun at once."""
    return [begin(pool, Run(prompt[:length] + words(choice, 5 + n), 20, f"{n}", 7, length), n) for n in range(count)]


def test_a_shared_prefix_is_computed_once(make_pool: MakePool) -> None:
    """Tasks that come together wait while one of them computes it, and take its cells; the next one finds it whole."""
    choice, pool = random.Random(21), make_pool(4096, sequences=8)
    runs = share(pool, 8, 40, choice=choice)
    assert {run.target for run in runs} == {runs[0].target}
    step(pool, runs)
    assert pool._filled == 40
    while not all(run.done for run in runs):
        step(pool, [run for run in runs if not run.done])
    assert [run.bits == undisturbed(make_pool, run) for run in runs] == [True] * 8
    leave(pool, runs[3])
    assert pool.take(3, "another", PROMPT + PROMPT, 7, 40) == (3, 40)
    assert pool._filled == 40 + sum(run.computed - 40 for run in runs)


def test_a_prefix_that_one_began_another_finishes(make_pool: MakePool) -> None:
    """The task that computed the first part of it is cancelled: nothing of it is lost."""
    pool = make_pool()
    first, second = share(pool, 2, 40, choice=random.Random(22))
    step(pool, [first, second], chunk=25)
    pool.leave(first.sequence, "0", first.tokens[:0])
    join(pool, [second])
    assert second.computed == 25
    finish(pool, second)
    assert second.bits == undisturbed(make_pool, second)
    assert pool._filled == second.computed


def test_packing_keeps_shared_cells_shared(make_pool: MakePool) -> None:
    """Beside tasks that come and go until the pool is packed, the prefix is there once, and no bit changes."""
    choice, pool = random.Random(23), make_pool(2048, sequences=8)
    runs = share(pool, 4, 40, choice=choice)
    packed = 0
    for turn in range(20):
        before = pool._filled
        leave(pool, finish(pool, begin(pool, Run(words(choice, 90), 2, f"{turn}"), 7)))
        packed += pool._filled < before
        step(pool, [run for run in runs if not run.done])
    assert packed > 0
    assert [run.bits == undisturbed(make_pool, run)[: len(run.bits)] for run in runs] == [True] * 4
    for prefix in tuple(pool._prefixes):
        pool._bury_prefix(prefix)
    pool._restart(2048)
    assert pool._filled == used(pool) == 40 + sum(run.computed - 40 for run in runs)
    while not all(run.done for run in runs):
        step(pool, [run for run in runs if not run.done])
    assert [run.bits == undisturbed(make_pool, run) for run in runs] == [True] * 4


def test_shared_prefixes_go_last(make_pool: MakePool) -> None:
    """A pool that is full frees what ended tasks left, then prefixes that no task has, and none that one has."""
    choice, pool = random.Random(24), make_pool(256, exact=True)
    leave(pool, finish(pool, begin(pool, Run(PROMPT + words(choice, 30), 1, "a", 7, 40), 0)))
    run = begin(pool, Run(words(choice, 40), 8, "a", 8, 30), 1)
    step(pool, [run])
    step(pool, [run])
    other = finish(pool, begin(pool, Run(words(choice, 160), 1, "b"), 2))
    assert list(pool._shared) == [7, 8]
    assert not pool._prefixes
    leave(pool, other)
    finish(pool, begin(pool, Run(words(choice, 200), 1, "c"), 3))
    assert list(pool._shared) == [8]
    finish(pool, run)
    assert run.bits == undisturbed(make_pool, run)


def test_a_prefix_is_begun_with_what_its_owner_left(make_pool: MakePool) -> None:
    """A system prompt that differs from the last one at its end alone is computed from there."""
    pool = make_pool()
    leave(pool, finish(pool, begin(pool, Run(PROMPT, 2), 0)))
    other = PROMPT[:30] + array("i", [5] * 20)
    target, computed = pool.take(0, "a", other, 7, 40)
    assert (target != 0, computed) == (True, 30)


def test_too_many_sequences_are_refused(make_pool: MakePool) -> None:
    """Each of the kernel's, a prefix for each, and two more must be fewer than llama.cpp's 256."""
    with pytest.raises(EngineFailed, match="at most 127"):
        make_pool(sequences=128)
