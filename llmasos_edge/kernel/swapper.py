"""The swapper, the medium-term scheduler: saved KV state moves between workers, arena and swap file, or is dropped.

Shortage is a value: what can't be saved is computed again. What is in RAM only is written ahead as soon as nobody works
on it, so that room in the arena is made by forgetting, and a power cut costs no session its state.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from llmasos_edge.errors import Panic
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.memory.backing import (
    Moved,
    MoveFailed,
    ReadDone,
    ReadFailed,
    StoredSegment,
    SwapEvent,
    WriteFailed,
    Written,
)
from llmasos_edge.kernel.memory.extent import Extent
from llmasos_edge.kernel.memory.kv_state import KvState, Residency, Segment, Session
from llmasos_edge.kernel.segments import Segments, Stores
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Bytes, ClientId, Milliseconds, ModelId, SegmentId, TaskId, Tokens

SAVE_MARGIN: Final = 4096  # bytes of a saved segment beside its tokens and cells
TOKEN_BYTES: Final = 4
READ_RATE: Final = 20_000.0  # bytes a millisecond, before any is measured: an SD card's


class Swapper:
    """Not thread-safe: on the kernel's thread, for the dispatcher and the seats."""

    def __init__(self, stores: Stores, trace: Trace) -> None:
        self.segments: Final = Segments(stores, self.states)
        self.arena: Final = stores.arena
        self.swap: Final = stores.swap
        self.device: Final = stores.device
        self._quota = stores.quota
        self._trace = trace
        self._sessions: dict[tuple[Session, ModelId], KvState] = {}  # the least recently used first
        self._own: dict[KvState, None] = {}  # of tasks without a session
        self._restoring: dict[TaskId, deque[tuple[KvState, tuple[Segment, ...]]]] = {}  # workers read them
        self._last = 0
        self._era = 0

    # ---- whose it is

    def claim(self, task: Task, fingerprint: str, now: Milliseconds) -> KvState:
        """The state that the task goes on from, its own until `release`: its session's, or a new one."""
        state = task.kv
        if state is None and task.submission.session is not None and task.submission.turn:
            session = task.submission.client, task.submission.session
            state = self._sessions.setdefault((session, task.model), KvState(task.model, fingerprint, session))
        state = state or KvState(task.model, fingerprint)
        if state.session is None:
            self._own[state] = None
        if state.fingerprint != fingerprint:
            self.segments.truncate(state, 0)
            state.fingerprint = fingerprint
        state.task, task.kv = task.id, state
        self._use(state, now)
        return state

    def release(self, task: Task, now: Milliseconds, *, goes_on: bool) -> None:
        """The task has ended: a session's state stays, and is written ahead.

        Without an answer its turn is not kept: if nothing else is saved of the session, there may be none.
        """
        state, task.kv = task.kv, None
        if state is None:
            return
        state.task, state.resident = None, False
        self._use(state, now)
        if state.session is None:
            del self._own[state]
            self.drop(state)
        elif goes_on or state.segments or state.saving is not None:
            self._write_ahead(state)
        else:
            self.forget(state)

    def _use(self, state: KvState, now: Milliseconds) -> None:
        state.used_at = now
        if state.session is not None:
            key = state.session, state.model
            self._sessions[key] = self._sessions.pop(key)

    # ---- a worker saves

    def save(self, state: KvState, upto: Tokens, cell: Bytes) -> hal.Save | None:
        """Room for what is not yet saved of at most `upto` tokens; None: there is none, or nothing to save."""
        start = state.end
        tokens = upto - start
        if tokens <= 0 or state.saving is not None:
            return None
        extent = self._room(Bytes(tokens * (cell + TOKEN_BYTES) + SAVE_MARGIN), state)
        if extent is None:
            return None
        self._last += 1
        segment = Segment(SegmentId(self._last), start, upto, extent=extent)
        state.saving = segment
        self.segments.begin(segment, state)
        return hal.Save(segment.id, start, extent)

    def saved(self, event: hal.Saved) -> KvState | None:
        """Whose segment that is; None: its worker is gone."""
        found = self.segments.found(event.segment)
        if found is None:
            return None
        state, segment = found
        state.saving = None
        self.segments.unhold(segment, state)
        if segment.dead:
            return state
        if event.size == 0 or segment.extent is None or (state.segments and event.start != state.end):
            self.segments.free(segment, state)
            return state
        segment.extent = self.arena.trim(segment.extent, event.size)
        segment.start, segment.end, segment.size, segment.checksum = event.start, event.end, event.size, event.checksum
        state.segments.append(segment)
        if state.task is None:
            self._write_ahead(state)
        if state.session is not None:
            self._enforce_quota(state.session[0])
        return state

    # ---- a worker restores

    def pieces(self, state: KvState) -> tuple[hal.Piece, ...]:
        """What of it is in the arena, from its first segment on; held until `restored`, if it is anything."""
        segments = state.leading()
        if segments and state.task is not None:
            self._restoring.setdefault(state.task, deque()).append((state, segments))
        for segment in segments:
            segment.holds += 1
        return tuple(
            hal.Piece(each.id, each.extent, each.size, each.start, each.end, each.checksum)
            for each in segments
            if each.extent is not None
        )

    def restored(self, event: hal.Restored) -> None:
        """Forget what did not agree with the task's tokens, or could not be trusted."""
        waiting = self._restoring.get(event.task)
        if waiting is None:
            return  # the worker is gone
        state, segments = waiting.popleft()
        if not waiting:
            del self._restoring[event.task]
        for segment in segments:
            self.segments.unhold(segment, state)
        for segment in state.segments:
            if segment.id in event.corrupt:
                self._trace.record(state.used_at, "session.corrupt", **_about(state), segment=segment.id)
                self.segments.truncate(state, segment.start)
                break
        self.segments.truncate(state, event.kept)

    def abandon(self, model: ModelId) -> None:
        """The model's worker is gone: what it was to save is lost, and what it was reading is free to move."""
        for task, waiting in tuple(self._restoring.items()):
            if waiting[0][0].model == model:
                del self._restoring[task]
                for state, segments in waiting:
                    for segment in segments:
                        self.segments.unhold(segment, state)
        for state in [each for each in self.states() if each.model == model]:
            state.resident = False
            if state.saving is not None:
                segment, state.saving = state.saving, None
                self.segments.found(segment.id)
                self.segments.unhold(segment, state)
                self.segments.free(segment, state)

    # ---- the swap file

    def swap_in(self, state: KvState, recompute_ms: float) -> bool:
        """Begin to read what is only in the swap file, if computing a token anew takes longer: True, until `read`."""
        missing = state.missing
        if state.arriving:
            return True
        if self.device is None or not missing:
            return False
        tokens = state.end - missing[0].start
        if sum(each.size for each in missing) / self._read_rate() > tokens * recompute_ms:
            return False
        for segment in missing:
            extent = self._room(segment.size, state)
            if extent is None or segment.swapped is None:
                break
            segment.extent = extent
            self.segments.begin(segment, state)
            state.arriving += 1
            self.device.read(segment.id, state.model, segment.swapped, extent, segment.size)
        return state.arriving > 0

    def swap_event(self, event: SwapEvent) -> KvState | None:
        """What the device has done. The state all of whose segments have now arrived, if that is what it means."""
        segment_id = SegmentId(event.request) if isinstance(event, ReadDone | ReadFailed) else event.segment
        found = self.segments.found(segment_id)
        if found is None:
            raise Panic(f"Swapper.swap_event: {event} was not asked for")
        state, segment = found
        match event:
            case Written():
                segment.swapped, segment.target = segment.target, None
            case WriteFailed():
                self._failed(state, event.why)
                self.segments.free_target(segment)
            case ReadDone() | ReadFailed():
                state.arriving -= 1
            case Moved() | MoveFailed():
                self.segments.moved(segment, event)
        self.segments.unhold(segment, state)
        if isinstance(event, Moved) and not self.segments.moving:
            self.segments.compact_swap()
        if isinstance(event, ReadFailed):
            self._failed(state, event.why)
            if not segment.dead:
                self.segments.truncate(state, segment.start)
        return state if isinstance(event, ReadDone | ReadFailed) and state.arriving == 0 else None

    def _failed(self, state: KvState, why: str) -> None:
        self._trace.record(state.used_at, "swap.failed", **_about(state), why=why)

    def _read_rate(self) -> float:
        """Bytes a millisecond."""
        return (self.device and self.device.statistics().read_bytes_per_ms) or READ_RATE

    def _write_ahead(self, state: KvState) -> None:
        """Queue what is only in the arena to be written."""
        if self.device is None or state.session is None:
            return
        for segment in state.segments:
            if segment.dirty and segment.holds == 0 and segment.extent is not None:
                segment.target = self._swap_room(segment.size, state)
                if segment.target is None:
                    return
                self.segments.begin(segment, state)
                used_at = Milliseconds(self._era + state.used_at)
                self.device.write(state.record(segment, used_at), segment.extent, segment.target)

    def adopt(self, stored: Iterable[StoredSegment]) -> None:
        """After a restart: what the swap file's index tells. Raises Panic if it contradicts itself."""
        if self.swap is None:
            raise Panic("Swapper.adopt: there is no swap file")
        found = sorted(stored, key=lambda each: each.record.segment)  # as they were saved
        for record, extent in ((each.record, each.extent) for each in found):
            key = (record.client, record.session), record.model
            state = self._sessions.setdefault(key, KvState(record.model, record.fingerprint, key[0]))
            if not self.swap.reserve(extent):
                raise Panic(f"Swapper.adopt: {extent} of segment {record.segment} is not free")
            fields = (record.start, record.end, record.size, record.checksum, None, extent)
            segment = Segment(record.segment, *fields)
            self._last, self._era = max(self._last, record.segment), max(self._era, record.used_at + 1)
            self.segments.truncate(state, record.start)  # what was saved later counts
            if state.fingerprint == record.fingerprint and (not state.segments or state.end == record.start):
                state.segments.append(segment)
            else:  # a power cut came between the parts of a turn
                self.segments.free(segment, state)
        for each in sorted(found, key=lambda each: each.record.used_at):
            key = (each.record.client, each.record.session), each.record.model
            self._sessions[key] = self._sessions.pop(key)

    # ---- room

    def _room(self, size: Bytes, wanted_by: KvState) -> Extent | None:
        """An extent of the arena; idle states leave it for that, the least recently used first, clean ones before."""
        extent = self.arena.allocate(size)
        while extent is None:
            victim = self._victim(wanted_by)
            if victim is None:
                return None
            self._evict(*victim)
            extent = self.arena.allocate(size)
        return extent

    def _victim(self, wanted_by: KvState) -> tuple[KvState, Segment] | None:
        dirty: tuple[KvState, Segment] | None = None
        waiting: tuple[KvState, Segment] | None = None
        for state in self._sessions.values():
            if state is wanted_by:
                continue
            for segment in reversed(state.segments):
                if segment.extent is None or segment.holds:
                    continue
                if state.task is not None:
                    waiting = waiting or (None if segment.dirty else (state, segment))
                elif segment.dirty:
                    dirty = dirty or (state, segment)
                else:
                    return state, segment
        return waiting or dirty

    def _evict(self, state: KvState, segment: Segment) -> None:
        """Out of the arena: it is still in the swap file, or it is lost with all that follows."""
        if segment.dirty:
            self.segments.truncate(state, segment.start)
        else:
            self.segments.free_extent(segment, state)

    def _swap_room(self, size: Bytes, wanted_by: KvState) -> Extent | None:
        """An extent of the swap file: idle sessions are dropped for it, the least recently used first."""
        if self.swap is None:
            return None
        extent = self.swap.allocate(size)
        while extent is None:
            victim = next(
                (each for each in self._sessions.values() if _swappable(each) and each is not wanted_by), None
            )
            if victim is None:
                return None
            self.drop(victim)
            extent = self.swap.allocate(size)
        return extent

    def _enforce_quota(self, client: ClientId) -> None:
        """Drop what is beyond the client's share, the least recently used first."""
        mine = [each for each in self._sessions.values() if each.session and each.session[0] == client]
        held: int = sum(each.bytes for each in mine)
        for state in mine:
            if held <= self._quota:
                return
            if state.task is None:
                held -= state.bytes
                self.drop(state)

    # ---- down

    def drop(self, state: KvState) -> None:
        """Nothing stays saved."""
        if state.saving is not None:
            state.saving.dead = True
        self.segments.truncate(state, 0)

    def forget(self, state: KvState) -> None:
        """The session itself is gone."""
        self.drop(state)
        if state.session is not None:
            self._sessions.pop((state.session, state.model), None)

    def swap_out(self, state: KvState) -> None:
        """Leave the arena, as far as it is written already; the rest is written now."""
        self._write_ahead(state)
        for segment in state.segments:
            if not segment.dirty and not segment.holds and segment.extent is not None:
                self.segments.free_extent(segment, state)

    # ---- what there is

    def states(self) -> Iterator[KvState]:
        yield from tuple(self._sessions.values())
        yield from tuple(self._own)

    def of_session(self, session: Session) -> Sequence[KvState]:
        """One state for each model that it has talked to."""
        return [each for each in self._sessions.values() if each.session == session]

    def census(self) -> dict[Residency, int]:
        counts = dict.fromkeys(Residency, 0)
        for state in self._sessions.values():
            counts[state.residency] += 1
        return counts

    def check_invariants(self) -> None:
        for state in self.states():
            state.check_invariants()
        restored = [each for waiting in self._restoring.values() for _, each in waiting]
        self.segments.check_invariants(self.states(), [segment for each in restored for segment in each])


def _swappable(state: KvState) -> bool:
    return state.task is None and any(segment.swapped is not None for segment in state.segments)


def _about(state: KvState) -> dict[str, str]:
    client, session = state.session or ("", "")
    return {"model": state.model, "client": client, "session": session}
