"""The KV pool of a worker: sequences, prefixes left by ended tasks, park and restore, and the pool made anew.

llama.cpp fills cells upwards from a head and jumps back as soon as some are freed below it. Restored or batched
otherwise, a sequence's logits keep their bits only while its cells ascend, so nothing is freed by itself:
what tasks leave behind stays as a cache of prefixes, and goes all at once when the pool is full. But every step passes
over every cell below the head (1,000 cells of others cost 2 % of it), so the pool is packed when too much is waste.
And sequences that decode together take cells in turns, one each, which the processor reads some 7 % slower than
cells in a row: every few steps what each of them added is gathered (docs/adr/0010).
"""

from __future__ import annotations  # array[int] exists for the type checker only

import ctypes
import mmap
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llmasos_edge.engine.llama import SEQUENCES_MAX, LlamaContext, LlamaModel
from llmasos_edge.engine.protocol import CONTROL_PAGE, Load
from llmasos_edge.errors import EngineFailed
from llmasos_edge.kernel.memory.extent import Extent

PREFIX_MIN: Final = 16  # tokens: a shorter common prefix is not worth a copy
PREFIXES: Final = 16  # sequences kept for prefixes of ended tasks
WASTE: Final = 256  # cells worth packing: some 2 ms for 1,000 tokens in use
STREWN: Final = 256  # cells taken in turns that are gathered: some 2.5 ms
STREWN_MIN: Final = 64  # that are worth it before a prompt comes between
ROW: Final = 16  # tokens of one sequence in one step, which lie in a row anyway


@dataclass(frozen=True, slots=True)
class Prefix:
    sequence: int
    owner: str
    tokens: array[int]


class KvPool:
    """Sequences [0, n) are the kernel's; the next PREFIXES hold prefixes; of the last two one holds what is left to be
    freed, the other what is being moved.
    """

    def __init__(self, model: LlamaModel, load: Load, arena: mmap.mmap) -> None:
        self._model, self._load, self._arena = model, load, arena
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(arena))
        self._grave: Final = load.sequences + PREFIXES
        self._scratch: Final = self._grave + 1
        if self._scratch >= SEQUENCES_MAX:
            raise EngineFailed(f"sequences: at most {SEQUENCES_MAX - PREFIXES - 2}, not {load.sequences}")
        self._prefixes: list[Prefix] = []
        self._live: dict[int, int] = {}  # in order of arrival: where in each begins what may be gathered, its tail
        self._strewn = 0  # cells of tails that were taken in turns
        self._filled = 0  # cells taken since the last of them were freed
        self.context = self._make(load.cells)

    def _make(self, cells: int) -> LlamaContext:
        context = LlamaContext(self._model, cells, self._scratch + 1, self._load.kv, self._load.threads)
        context.abort_on(self._base)
        return context

    def decode(self, entries: Sequence[tuple[int, Sequence[int], int, bool]]) -> int:
        """As LlamaContext.decode; when the pool is full, what ended tasks left is freed first."""
        rows = any(len(tokens) > ROW for _, tokens, _, _ in entries)
        if rows or self._strewn >= STREWN:
            self._settle()
        status = self.context.decode(entries)
        if status == 1:
            self.reclaim()
            status = self.context.decode(entries)
        if status == 0:
            self._filled += sum(len(tokens) for _, tokens, _, _ in entries)
            if rows:
                self._begin_tails()
            elif len(entries) > 1:
                self._strewn += len(entries)
        return status

    def take(self, sequence: int, owner: str, tokens: Sequence[int]) -> int:
        """Start a sequence with the longest prefix of `tokens` that `owner` left computed; how many tokens that is."""
        self._live[sequence] = 0
        best, length = None, PREFIX_MIN - 1
        for prefix in self._prefixes:
            common = _common(prefix.tokens, tokens) if prefix.owner == owner else 0
            if common > length:
                best, length = prefix, common
        if best is None:
            return 0
        self._prefixes.remove(best)
        self._prefixes.append(best)  # the last to be dropped
        length = min(length, len(tokens) - 1)  # the last one is computed again: its logits are wanted
        self.context.copy(best.sequence, sequence, end=length)
        self._live[sequence] = length
        return length

    def leave(self, sequence: int, owner: str, tokens: array[int]) -> None:
        """The task has ended: `tokens` are computed in its sequence, and may be the prefix of another prompt."""
        if len(tokens) >= PREFIX_MIN:
            for shorter in [
                p for p in self._prefixes if p.owner == owner and _common(p.tokens, tokens) == len(p.tokens)
            ]:
                self._bury_prefix(shorter)
            if len(self._prefixes) == PREFIXES:
                self._bury_prefix(self._prefixes[0])
            taken = {prefix.sequence for prefix in self._prefixes}
            free = next(n for n in range(self._load.sequences, self._grave) if n not in taken)
            self.context.copy(sequence, free, end=len(tokens))
            self._prefixes.append(Prefix(free, owner, tokens))
        self.release(sequence)

    def park(self, sequence: int, extent: Extent) -> int:
        """Save the state into the arena and let go of the sequence; the bytes used, 0 if it does not fit."""
        size = self.context.save(sequence, self._base + CONTROL_PAGE + extent.offset, extent.size)
        self.release(sequence)
        return size

    def restore(self, sequence: int, extent: Extent, size: int) -> bool:
        """The reverse; the extent's memory goes back to the system."""
        address = self._base + CONTROL_PAGE + extent.offset
        good = self.context.restore(sequence, address, size)
        if not good:
            self.reclaim()
            good = self.context.restore(sequence, address, size)
        self._live[sequence] = self.context.length(sequence)
        self._filled += self._live[sequence]
        self.discard(extent)
        return good

    def discard(self, extent: Extent) -> None:
        """Give the pages of an extent back to the system (madvise(2), MADV_REMOVE)."""
        self._arena.madvise(mmap.MADV_REMOVE, CONTROL_PAGE + extent.offset, extent.size)

    def release(self, sequence: int) -> None:
        """The sequence's state is no longer wanted."""
        self._live.pop(sequence, None)
        self._bury(sequence)
        self._pack()

    def reclaim(self) -> None:
        """Free all that ended tasks left. An exact model is packed as well, so that cells ascend again."""
        for prefix in self._prefixes:
            self.context.remove(prefix.sequence)
        self._prefixes.clear()
        self.context.remove(self._grave)
        self._begin_tails()
        self._filled = sum(self._live.values())
        if self._load.exact:
            self.rebuild(self.context.cells)

    def rebuild(self, cells: int) -> None:
        """Save every live sequence, make the context anew with `cells`, and restore them one after another."""
        self._prefixes.clear()
        self._restart(cells, sorted(self._live))

    def _pack(self) -> None:
        """If that frees enough, move who runs and the prefixes used last to the lowest cells; all others are free then.

        Cells that sequences share are no longer shared. At most a quarter of the pool is held aside meanwhile.
        """
        kept, live, cells = self._worth_keeping(), sorted(self._live), self.context.cells
        used = sum(len(prefix.tokens) for prefix in kept) + sum(self.context.length(sequence) for sequence in live)
        if used <= cells // 4 and self._filled - used >= WASTE:
            self._prefixes = kept
            self._restart(cells, [*(prefix.sequence for prefix in kept), *live])

    def _worth_keeping(self) -> list[Prefix]:
        """The prefixes used last, up to an eighth of the cells; the very last one may have a quarter."""
        kept: list[Prefix] = []
        total = 0
        for prefix in reversed(self._prefixes):
            total += len(prefix.tokens)
            if total > self.context.cells // (8 if kept else 4):
                break
            kept.insert(0, prefix)
        return kept

    def _restart(self, cells: int, sequences: list[int]) -> None:
        """An empty context but for these sequences, one above the other."""
        saved = {sequence: self._save_aside(sequence) for sequence in sequences}
        if cells == self.context.cells:
            self.context.clear()
        else:
            self.context.close()
            self.context = self._make(cells)
        for sequence, state in saved.items():
            if len(state) and not self.context.restore(sequence, ctypes.addressof(state), len(state)):
                raise EngineFailed(f"sequence {sequence} can't be restored into {cells} cells")
        self._begin_tails()
        self._filled = sum(self.context.length(sequence) for sequence in sequences)

    # ---- tails

    def _begin_tails(self) -> None:
        """What is in the pool now stays where it is: only what lies above it may be gathered."""
        self._live = {sequence: self.context.length(sequence) for sequence in self._live}
        self._strewn = 0

    def _settle(self) -> None:
        """Gather the tails if it is worth it, and begin new ones.

        The cells of all tails are freed, and taken again by one tail after the other, in order of arrival. The cells of
        each sequence still ascend: of what was freed below its head, all came from those before it, who need it again.
        """
        if self._strewn >= STREWN_MIN:
            saved = {sequence: self._lift(sequence, start) for sequence, start in self._live.items()}
            for sequence, state in saved.items():
                if len(state) and not self.context.restore(self._scratch, ctypes.addressof(state), len(state)):
                    raise EngineFailed(f"the tail of sequence {sequence} can't be restored")
                self.context.copy(self._scratch, sequence)
                self.context.remove(self._scratch)
        self._begin_tails()

    def _lift(self, sequence: int, start: int) -> ctypes.Array[ctypes.c_uint8]:
        """Save a sequence from `start` on, and take that out of it."""
        self.context.copy(sequence, self._scratch, start)
        state = self._save_aside(self._scratch)
        self.context.remove(self._scratch)
        self.context.remove(sequence, start)
        return state

    def _save_aside(self, sequence: int) -> ctypes.Array[ctypes.c_uint8]:
        size = self.context.state_size(sequence)
        state = (ctypes.c_uint8 * size)()
        self.context.save(sequence, ctypes.addressof(state), size)
        return state

    def _bury_prefix(self, prefix: Prefix) -> None:
        self._prefixes.remove(prefix)
        self._bury(prefix.sequence)

    def _bury(self, sequence: int) -> None:
        """Keep the cells taken, so that the head goes on upwards, but free the sequence's number."""
        self.context.copy(sequence, self._grave)
        self.context.remove(sequence)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(at for at in range(length) if one[at] != other[at])
