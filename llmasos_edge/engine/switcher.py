"""The context switch: a task gets a sequence, with what of its tokens is computed already, or loses it."""

import mmap
from collections.abc import Callable
from functools import partial

from llmasos_edge.engine import segment
from llmasos_edge.engine.kv_pool import KvPool
from llmasos_edge.engine.work import Work
from llmasos_edge.kernel.hal import Piece, Restored, Save, Saved
from llmasos_edge.kernel.memory.extent import CONTROL_PAGE, Extent
from llmasos_edge.kernel.units import Bytes, SegmentId, SequenceId, Tokens


class Switcher:
    """On the compute thread, at step boundaries. `send` tells the kernel what became of saved state."""

    def __init__(self, pool: KvPool, arena: mmap.mmap, send: Callable[[Saved | Restored], None]) -> None:
        self._pool, self._arena, self._send = pool, arena, send

    def switch_in(self, work: Work, sequence: SequenceId, pieces: tuple[Piece, ...]) -> None:
        """What is in the cells already comes first, then what the pieces have beyond that."""
        work.sequence, work.pieces, work.computed = sequence, pieces, 0
        work.target, found = self._pool.take(sequence, work.program.owner, work.tokens, work.prefix, work.shared)
        work.found(found)
        self.proceed(work)

    def proceed(self, work: Work) -> None:
        """Take what has become possible: the prefix that is computed now, the pieces that follow what is there."""
        if work.sequence is None:
            return
        if work.sharing:
            work.found(self._pool.shared_length(work.prefix))
            if work.computed < work.shared:
                return
            self._pool.join(work.sequence, work.prefix)
            work.target = work.sequence
        if work.pieces and work.computed >= work.pieces[0].start:
            self._restore(work, work.sequence)

    def switch_out(self, work: Work, save: Save | None) -> None:
        """The sequence is free afterwards. A state that is not saved whole is lost."""
        sequence = work.sequence
        if sequence is None:
            return
        self._keep_pieces(work)
        start = max(save.start, work.shared) if save else 0
        size = self._save(work, sequence, start, save.extent) if save else 0
        if save:
            checksum = segment.checksum(self._room(save.extent, size))
            end = work.computed if size else start
            self._send(Saved(save.segment, Tokens(start), Tokens(end), Bytes(size), checksum))
        self._pool.release(sequence)
        self._vacate(work)
        if not size:
            work.computed = 0

    def leave(self, work: Work) -> None:
        """The task has ended: what it computed may be the prefix of another prompt."""
        self._keep_pieces(work)
        if work.sequence is None:
            return
        # a conversation goes on from its answer, a bare prompt seldom does
        end = work.computed if work.program.messages is not None else min(work.computed, work.prompt)
        self._pool.leave(work.sequence, work.program.owner, work.tokens[: 0 if work.sharing else end])
        self._vacate(work)

    def _vacate(self, work: Work) -> None:
        work.reached = max(work.reached, work.computed)
        work.sequence = work.target = None

    def _save(self, work: Work, sequence: int, start: int, extent: Extent) -> int:
        """The bytes of the segment; 0: it does not fit, or there is nothing to save."""
        if work.sharing or start >= work.computed:
            return 0
        write = partial(segment.write, self._room(extent, extent.size), work.tokens[: work.computed], start)
        return self._pool.save(sequence, start, write)

    def _restore(self, work: Work, sequence: int) -> None:
        """Piece after piece, as far as they are the state of the task's tokens; what is in the cells already is not
        touched, and need not be sound.
        """
        kept, corrupt = work.pieces[0].start, list[SegmentId]()
        for piece in work.pieces:
            room = self._room(piece.extent, piece.size)
            found = segment.read(room, piece.start)
            agreed = found.agreed(work.tokens, piece.end) if found else piece.start
            if not agreed == piece.end <= work.computed:
                sound = segment.checksum(room) == piece.checksum
                if not sound or found is None or not self._take(work, sequence, found, agreed):
                    corrupt.append(piece.segment)
                    break
            kept = Tokens(agreed)
            if agreed < piece.end:
                break
        self._told(work, kept, tuple(corrupt))

    def _take(self, work: Work, sequence: int, found: segment.Segment, agreed: int) -> bool:
        """The last token is computed again: its logits are wanted."""
        end = min(agreed, len(work.tokens) - 1)
        if end <= work.computed:
            return True
        if not self._pool.restore(sequence, found.state, work.computed, end):
            return False
        work.found(end)
        return True

    def _keep_pieces(self, work: Work) -> None:
        """Pieces whose turn never came stay as good as they were."""
        if work.pieces:
            self._told(work, work.pieces[-1].end)

    def _told(self, work: Work, kept: Tokens, corrupt: tuple[SegmentId, ...] = ()) -> None:
        work.pieces = ()
        self._send(Restored(work.task, kept, corrupt))

    def _room(self, extent: Extent, size: int) -> memoryview:
        start = CONTROL_PAGE + extent.offset
        return memoryview(self._arena)[start : start + size]
