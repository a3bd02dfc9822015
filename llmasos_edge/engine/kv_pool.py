"""The KV pool of a worker: sequences, prefixes that they share, save and restore, and the pool made anew.

llama.cpp fills cells upwards from a head and jumps back as soon as some are freed below it. Restored or batched
otherwise, a sequence's logits keep their bits only while its cells ascend, so nothing is freed by itself:
what tasks leave behind stays as a cache of prefixes, and goes all at once when the pool is full; what many tasks begin
with goes last. But every step passes over every cell below the head (1,000 cells of others cost 2 % of it), so the pool
is packed when too much is waste. And sequences that decode together take cells in turns, one each, which the processor
reads some 7 % slower than cells in a row: every few steps what each of them added is gathered (docs/adr/0010).
"""

from __future__ import annotations  # array[int] exists for the type checker only

import ctypes
import mmap
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from llmasos_edge.engine.llama import SEQUENCES_MAX, LlamaContext, LlamaModel
from llmasos_edge.engine.protocol import Load
from llmasos_edge.engine.segment import common
from llmasos_edge.errors import EngineFailed, Panic

PREFIX_MIN: Final = 16  # tokens: a shorter common prefix is not worth a copy
PREFIXES: Final = 16  # sequences for prefixes, at least: one for each task
SPARE: Final = 2  # sequences for what is left to be freed, and for what is being moved
WASTE: Final = 256  # cells worth packing: some 2 ms for 1,000 tokens in use
STREWN: Final = 256  # cells taken in turns that are gathered: some 2.5 ms
STREWN_MIN: Final = 64  # that are worth it before a prompt comes between
ROW: Final = 16  # tokens of one sequence in one step, which lie in a row anyway


@dataclass(frozen=True, slots=True)
class Prefix:
    """What an ended task left; it may begin with a shared prefix."""

    sequence: int
    owner: str
    tokens: array[int]
    shared: int


@dataclass(frozen=True, slots=True)
class Shared:
    """A prefix of many tasks, known by its number; its sequence may be computed in part only."""

    sequence: int
    length: int


@dataclass(slots=True)
class Live:
    """A task's sequence: where begins what may be gathered, its tail; and the number of its shared prefix, or 0."""

    tail: int
    shared: int


class KvPool:
    """Sequences [0, n) are the kernel's; the next n, or PREFIXES, hold prefixes, those that tasks share and those that
    tasks left; of the last two one holds what is left to be freed, the other what is being moved.
    """

    def __init__(self, model: LlamaModel, load: Load, arena: mmap.mmap) -> None:
        self._model, self._load = model, load
        self._abort_byte = ctypes.addressof(ctypes.c_char.from_buffer(arena))
        self._grave: Final = load.sequences + max(PREFIXES, load.sequences)
        self._scratch: Final = self._grave + 1
        if self._scratch >= SEQUENCES_MAX:
            raise EngineFailed(f"sequences: at most {(SEQUENCES_MAX - SPARE) // 2}, not {load.sequences}")
        self._prefixes: list[Prefix] = []
        self._shared: dict[int, Shared] = {}  # by number; the one used last is the last one
        self._live: dict[int, Live] = {}  # in order of arrival
        self._strewn = 0  # cells of tails that were taken in turns
        self._filled = 0  # cells taken since the last of them were freed
        self.context = self._make(load.cells)

    def _make(self, cells: int) -> LlamaContext:
        context = LlamaContext(self._model, cells, self._scratch + 1, self._load.kv, self._load.threads)
        context.abort_on(self._abort_byte)
        return context

    def decode(self, entries: Sequence[tuple[int, Sequence[int], int, bool]]) -> int:
        """As LlamaContext.decode; when the pool is full, what nobody uses is freed first."""
        rows = any(len(tokens) > ROW for _, tokens, _, _ in entries)
        if rows or self._strewn >= STREWN:
            self._settle()
        status = self.context.decode(entries)
        for free in (self.reclaim, self._drop_idle):
            if status == 1:
                free()
                status = self.context.decode(entries)
        if status == 0:
            self._filled += sum(len(tokens) for _, tokens, _, _ in entries)
            if rows:
                self._begin_tails()
            elif len(entries) > 1:
                self._strewn += len(entries)
        return status

    # ---- sequences

    def take(
        self, sequence: int, owner: str, tokens: Sequence[int], number: int = 0, shared: int = 0
    ) -> tuple[int, int]:
        """Start a sequence with the longest prefix of `tokens` that is computed: left by `owner`, or the shared one of
        this number and length.

        Where the next tokens are to be computed, and how many there are: in the sequence, or, while the shared prefix
        is not whole, in that one's; then `join` follows.
        """
        self._live[sequence] = Live(0, number)
        left, length = self._longest(owner, tokens)
        length = min(length, len(tokens) - 1)  # the last one is computed again: its logits are wanted
        if shared:
            self._share(number, shared, left, length)
            if length <= shared:
                return self._begin_shared(sequence, number)
        if left is not None:
            self._prefixes.remove(left)
            self._prefixes.append(left)  # the last to be dropped
            self._begin(sequence, left.sequence, length)
        return sequence, length

    def join(self, sequence: int, number: int) -> None:
        """The shared prefix is whole: the sequence begins with it."""
        shared = self._shared[number]
        self._begin(sequence, shared.sequence, shared.length)

    def shared_length(self, number: int) -> int:
        """How much of a shared prefix is computed."""
        return self.context.length(self._shared[number].sequence)

    def _begin(self, sequence: int, source: int, length: int) -> None:
        self.context.copy(source, sequence, end=length)
        self._live[sequence].tail = length

    def _begin_shared(self, sequence: int, number: int) -> tuple[int, int]:
        shared, computed = self._shared[number], self.shared_length(number)
        if computed < shared.length:
            return shared.sequence, computed
        self.join(sequence, number)
        return sequence, computed

    def _share(self, number: int, length: int, left: Prefix | None, computed: int) -> None:
        """Have a shared prefix of this number, which begins with what is computed of it in `left`."""
        found = self._shared.pop(number, None)
        if found is None:
            found = Shared(self._free_sequence(), length)
            if left is not None:
                self.context.copy(left.sequence, found.sequence, end=min(computed, length))
        self._shared[number] = found

    def _longest(self, owner: str, tokens: Sequence[int]) -> tuple[Prefix | None, int]:
        best, length = None, PREFIX_MIN - 1
        for prefix in self._prefixes:
            same = common(prefix.tokens, tokens) if prefix.owner == owner else 0
            if same > length:
                best, length = prefix, same
        return best, length if best else 0

    def leave(self, sequence: int, owner: str, tokens: array[int]) -> None:
        """The task has ended: `tokens` are computed in its sequence, and may be the prefix of another prompt."""
        number = self._live.pop(sequence).shared
        shared = self._shared[number].length if number else 0
        if len(tokens) >= max(PREFIX_MIN, shared + 1):
            for shorter in [
                p for p in self._prefixes if p.owner == owner and common(p.tokens, tokens) == len(p.tokens)
            ]:
                self._bury_prefix(shorter)
            free = self._free_sequence()
            self.context.copy(sequence, free, end=len(tokens))
            self._prefixes.append(Prefix(free, owner, tokens, number))
        self.release(sequence)

    def _free_sequence(self) -> int:
        """For a prefix. There is always one: fewer shared prefixes are in use than there are tasks."""
        taken = {each.sequence for each in self._prefixes} | {each.sequence for each in self._shared.values()}
        for sequence in range(self._load.sequences, self._grave):
            if sequence not in taken:
                return sequence
        if self._prefixes:
            return self._bury_prefix(self._prefixes[0])
        return self._bury_shared(self._idle()[0])

    def release(self, sequence: int) -> None:
        """The sequence's state is no longer wanted."""
        self._live.pop(sequence, None)
        self._bury(sequence)
        self._pack()

    # ---- saved state

    def save(self, sequence: int, start: int, write: Callable[[int, Callable[[int, int], int]], int]) -> int:
        """Save the state from `start` on: `write` gets its size, and `copy(address, bytes)`. What `write` returned."""
        self.context.copy(sequence, self._scratch, start)
        size = self.context.state_size(self._scratch)
        written = write(size, partial(self.context.save, self._scratch))
        self.context.remove(self._scratch)
        return written

    def restore(self, sequence: int, state: memoryview, start: int, end: int) -> bool:
        """Of a saved state, the tokens [start, end); those before are in the sequence. False: llama.cpp refuses it."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(state))
        good = self.context.restore(self._scratch, address, len(state))
        for free in (self.reclaim, self._drop_idle):
            if not good:
                free()
                good = self.context.restore(self._scratch, address, len(state))
        if good:
            self._move(sequence, start, end)
            self._live[sequence].tail = end
            self._filled += end - start
        return good

    def _move(self, sequence: int, start: int, end: int = -1) -> None:
        """From the sequence that things move through."""
        self.context.copy(self._scratch, sequence, start, end)
        self.context.remove(self._scratch)

    # ---- cells that nobody needs

    def reclaim(self) -> None:
        """Free all that ended tasks left. An exact model is packed as well, so that cells ascend again."""
        for prefix in self._prefixes:
            self.context.remove(prefix.sequence)
        self._prefixes.clear()
        self.context.remove(self._grave)
        self._freed()

    def _drop_idle(self) -> None:
        """Free the shared prefixes that no task has."""
        for number in self._idle():
            self.context.remove(self._shared.pop(number).sequence)
        self._freed()

    def _freed(self) -> None:
        self._begin_tails()
        self._filled = self._used(self._prefixes, self._shared)
        if self._load.exact:
            self._restart(self.context.cells)

    def _idle(self) -> list[int]:
        """Numbers of the shared prefixes that no task has, the one used last at the end."""
        used = {live.shared for live in self._live.values()}
        return [number for number in self._shared if number not in used]

    def _used(self, prefixes: list[Prefix], shared: dict[int, Shared]) -> int:
        """Cells of these and of who runs."""
        whole = sum(self.context.length(each.sequence) for each in shared.values())
        holders = [(each.sequence, each.shared) for each in prefixes]
        holders += [(sequence, live.shared) for sequence, live in self._live.items()]
        return whole + sum(max(0, self.context.length(s) - self._start(s, number)) for s, number in holders)

    def _start(self, sequence: int, number: int) -> int:
        """Where a sequence's own cells begin: behind its shared prefix, if that is there."""
        shared = self._shared.get(number)
        if shared is None or min(self.context.length(sequence), self.shared_length(number)) < shared.length:
            return 0
        return shared.length

    # ---- packing

    def rebuild(self, cells: int) -> None:
        """Make the context anew with `cells`, while no task has a sequence; what many tasks begin with stays."""
        if self._live:
            raise Panic(f"KvPool.rebuild: {len(self._live)} sequences are in use")
        self._prefixes, self._shared = self._worth_keeping(cells)
        self._restart(cells)

    def _pack(self) -> None:
        """If that frees enough, move who runs and the prefixes used last to the lowest cells; all others are free then.

        At most a quarter of the pool is held aside meanwhile.
        """
        prefixes, shared = self._worth_keeping(self.context.cells)
        used = self._used(prefixes, shared)
        if used <= self.context.cells // 4 and self._filled - used >= WASTE:
            self._prefixes, self._shared = prefixes, shared
            self._restart(self.context.cells)

    def _worth_keeping(self, cells: int) -> tuple[list[Prefix], dict[int, Shared]]:
        """Up to a quarter of the cells: shared prefixes that tasks have, then others, then, up to an eighth, the
        prefixes used last; the very last one may have a quarter.
        """
        kept = set(self._shared) - set(idle := self._idle())
        room = cells // 4 - self._used([], {number: self._shared[number] for number in kept})
        for number in reversed(idle):
            if self.shared_length(number) <= room:
                room -= self.shared_length(number)
                kept.add(number)
        prefixes: list[Prefix] = []
        total = 0
        for prefix in reversed(self._prefixes):
            total += len(prefix.tokens) - (self._shared[prefix.shared].length if prefix.shared in kept else 0)
            if total > min(room, cells // (8 if prefixes else 4)):
                break
            prefixes.insert(0, prefix)
        return prefixes, {number: shared for number, shared in self._shared.items() if number in kept}

    def _restart(self, cells: int) -> None:
        """An empty context but for what is kept, one above the other; what sequences share is there once."""
        holders = [(each.sequence, 0) for each in self._shared.values()]
        holders += [(each.sequence, each.shared) for each in self._prefixes]
        holders += [(sequence, self._live[sequence].shared) for sequence in sorted(self._live)]
        starts = [self._start(*holder) for holder in holders]
        states = [self._copy_aside(sequence, start) for (sequence, _), start in zip(holders, starts, strict=True)]
        if cells == self.context.cells:
            self.context.clear()
        else:
            self.context.close()
            self.context = self._make(cells)
        for (sequence, number), start, state in zip(holders, starts, states, strict=True):
            if start:
                self.context.copy(self._shared[number].sequence, sequence, end=start)
            self._put_back(sequence, start, state)
        self._begin_tails()
        self._filled = self._used(self._prefixes, self._shared)

    # ---- tails

    def _begin_tails(self) -> None:
        """What is in the pool now stays where it is: only what lies above it may be gathered."""
        for sequence, live in self._live.items():
            live.tail = self.context.length(sequence)
        self._strewn = 0

    def _settle(self) -> None:
        """Gather the tails if it is worth it, and begin new ones.

        The cells of all tails are freed, and taken again by one tail after the other, in order of arrival. The cells of
        each sequence still ascend: of what was freed below its head, all came from those before it, who need it again.
        """
        if self._strewn >= STREWN_MIN:
            saved = {sequence: self._lift(sequence, live.tail) for sequence, live in self._live.items()}
            for sequence, state in saved.items():
                self._put_back(sequence, self._live[sequence].tail, state)
        self._begin_tails()

    def _lift(self, sequence: int, start: int) -> ctypes.Array[ctypes.c_uint8]:
        """Save a sequence from `start` on, and take that out of it."""
        state = self._copy_aside(sequence, start)
        self.context.remove(sequence, start)
        return state

    def _copy_aside(self, sequence: int, start: int) -> ctypes.Array[ctypes.c_uint8]:
        self.context.copy(sequence, self._scratch, start)
        size = self.context.state_size(self._scratch)
        state = (ctypes.c_uint8 * size)()
        self.context.save(self._scratch, ctypes.addressof(state), size)
        self.context.remove(self._scratch)
        return state

    def _put_back(self, sequence: int, start: int, state: ctypes.Array[ctypes.c_uint8]) -> None:
        if len(state) and not self.context.restore(self._scratch, ctypes.addressof(state), len(state)):
            raise EngineFailed(f"sequence {sequence} can't be restored into {self.context.cells} cells")
        self._move(sequence, start)

    def _bury_prefix(self, prefix: Prefix) -> int:
        self._prefixes.remove(prefix)
        self._bury(prefix.sequence)
        return prefix.sequence

    def _bury_shared(self, number: int) -> int:
        sequence = self._shared.pop(number).sequence
        self._bury(sequence)
        return sequence

    def _bury(self, sequence: int) -> None:
        """Keep the cells taken, so that the head goes on upwards, but free the sequence's number."""
        self.context.copy(sequence, self._grave)
        self.context.remove(sequence)
