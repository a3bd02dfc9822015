"""The journal: accepted work, its replies and the sessions' turns, safe from crashes and power cuts.

Writes are queued, and one thread commits all that wait in one transaction: one fsync serves many callers. `then` is
called on that thread after the commit, with None or the error. No method waits for the disk, except where it says so.
"""

import logging
import queue
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from llmasos_edge.errors import LLMasOSError, QueueFull, StoreError
from llmasos_edge.services.journal_file import Entry, Finished, JournalFile, Key, SessionRow, TurnMessage

__all__ = ["Entry", "Finished", "Journal", "Known", "SessionRow", "Turns"]

REMEMBER_MS = 10 * 60_000  # a reply, after it was given, in running time
SWEEP_S = 60
LATER_S = 1.0  # what nobody waits for, and what failed, is written at the next occasion or after this
MAX_BATCH = 256
MAX_QUEUED = 1024
CACHED_SESSIONS = 32
SANE_WALL_MS = 1_767_225_600_000  # 2026-01-01: an earlier time means that the clock was not set yet
RETRY_AFTER_MS = 5000

Then = Callable[[LLMasOSError | None], None]
log = logging.getLogger(__name__)


class Known(NamedTuple):
    """What is remembered of a request: its task, and whether it has its reply."""

    task: str
    finished: bool


class Turns(NamedTuple):
    """Messages to add to a session of the same client."""

    session: str
    messages: Sequence[TurnMessage]


def _nothing_of(_: object) -> None:
    """Nobody wants to know."""


def _nothing(_: LLMasOSError | None = None) -> None:
    """For those who need not be told."""


@dataclass(frozen=True, slots=True)
class _Write:
    """`apply` inside the transaction; after it `committed`, then `then`. What is `must` is tried until it succeeds."""

    apply: Callable[[], None]
    then: Then = _nothing
    committed: Callable[[], None] = _nothing
    must: bool = False
    lazy: bool = False


class Journal:
    """Opened by one daemon at a time (who holds the lock of the state directory)."""

    def __init__(
        self,
        path: Path,
        *,
        monotonic_ms: Callable[[], int],
        wall_ms: Callable[[], int],
        report: Callable[[str, dict[str, object]], None],
        keep_s: int = 7 * 86_400,
        sync_delay_s: float = 0.0,
    ) -> None:
        """Open `path` (made if missing); StoreError if that can't be.

        `report(kind, details)` is told of a damaged file. Sessions idle for `keep_s` of running time end.
        `sync_delay_s` is added to each commit: a benchmark's slow disk.
        """
        self._file = JournalFile(path, report)
        self._monotonic_ms = monotonic_ms
        self._wall_ms = wall_ms
        self._keep_ms = keep_s * 1000
        self._sync_delay_s = sync_delay_s
        self._boot, self._ran_before_ms = self._file.begin_boot()
        self._opened_ms = monotonic_ms()
        self._swept_ms = self._opened_ms
        self._index = {(client, name): Known(task, bool(done)) for client, name, task, done in self._file.known()}
        self._fresh: dict[Key, bytes] = {}  # replies that are not on the disk yet
        self._sessions: OrderedDict[Key, list[TurnMessage]] = OrderedDict()
        self._commits = 0  # guards the cache against what was read before a commit
        self._lock = threading.Lock()  # of the two above
        self._has_sessions = self._file.has_sessions()
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._later: list[_Write] = []
        self._trouble = ""
        self.on_expired: Callable[[Sequence[Key]], None] = (
            _nothing_of  # told on the journal's thread which sessions ended
        )
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        """Start the writing thread."""
        self._thread.start()

    def stop(self) -> None:
        """Write all that is queued, and close. Waits for the disk."""
        if self._thread.ident is not None:
            self._queue.put(None)
            self._thread.join()
        self._file.close()

    # --- what an earlier run left, and what is remembered

    def boot(self) -> int:
        """The number of this opening of the journal, from 1."""
        return self._boot

    def pending(self) -> list[Entry]:
        """Requests without a reply, in order of acceptance. Reads the disk; for the start."""
        return self._file.pending()

    def undelivered(self) -> list[Finished]:
        """Replies that the broker has not acknowledged yet. Reads the disk; for the start and after a reconnect."""
        return self._file.undelivered()

    def find(self, client: str, request_id: str) -> Known | None:
        """What is remembered of a request, from memory."""
        return self._index.get((client, request_id))

    def recall(self, client: str, request_id: str, then: Callable[[bytes | None], None]) -> None:
        """Bring the reply of a finished request, on the journal's thread; None if there is none."""
        found: list[bytes | None] = []
        key = client, request_id

        def fetch() -> None:
            found[:] = [self._fresh.get(key) or self._file.reply(key)]

        self._queue.put(_Write(fetch, lambda error: then(found[0] if found else self._fresh.get(key))))

    def recall_task(self, task: str, then: Callable[[bytes | None], None]) -> None:
        """As `recall`, by the task that the request became."""
        named = next((key for key, known in tuple(self._index.items()) if known.task == task), None)
        if named is None:
            then(None)
        else:
            self.recall(*named, then)

    def running_ms(self) -> int:
        """Milliseconds that the node has run, all boots together; the end of a crashed boot may be missing (1 min)."""
        return self._ran_before_ms + self._monotonic_ms() - self._opened_ms

    def elapsed_ms(self, entry: Entry) -> int:
        """Since acceptance, the time switched off included as far as the clock can be believed."""
        ran = self.running_ms() - entry.accepted_run_ms
        slept = self._wall_ms() - entry.accepted_wall_ms
        same_boot = entry.accepted_run_ms > self._ran_before_ms
        return ran if same_boot or entry.accepted_wall_ms < SANE_WALL_MS else max(ran, slept)

    def turns(self, client: str, session: str) -> list[TurnMessage]:
        """A session's messages; reads the disk if it was not used lately. Counts what has been committed."""
        key = client, session
        with self._lock:
            if key in self._sessions:
                self._sessions.move_to_end(key)
                return list(self._sessions[key])
            commits = self._commits
        messages = self._file.turns(key)
        with self._lock:
            if commits == self._commits:
                self._sessions[key] = list(messages)
                if len(self._sessions) > CACHED_SESSIONS:
                    self._sessions.popitem(last=False)
        return messages

    def sessions(self) -> list[SessionRow]:
        """All sessions that have been committed, the one touched last first. Reads the disk."""
        return self._file.sessions(self.running_ms())

    # --- writes

    def accept(self, entry: Entry, then: Then) -> Known | None:
        """Take a request: None, and `then` is called; or what is known of its (client, id), and nothing happens.

        QueueFull if the disk can't keep up. After an error in `then` the request is forgotten, and may be repeated.
        """
        if self._queue.qsize() >= MAX_QUEUED:
            raise QueueFull("the journal's disk can't keep up: try again later", retry_after_ms=RETRY_AFTER_MS)
        key = entry.client, entry.id
        mine = Known(entry.task, finished=False)
        known = self._index.setdefault(key, mine)
        if known is not mine:
            return known
        # Later than the start of this boot, by which elapsed_ms() tells the boots apart.
        stamped = replace(entry, accepted_run_ms=max(self.running_ms(), self._ran_before_ms + 1))

        def told(error: LLMasOSError | None) -> None:
            if error is not None:
                self._index.pop(key, None)
            then(error)

        self._queue.put(_Write(lambda: self._file.accept(stamped), told))
        return None

    def finish(self, client: str, request_id: str, reply: bytes, then: Then, turns: Turns | None = None) -> None:
        """Record the final reply, and with it the turns that it adds to a session. Retried until the disk takes it.

        An error in `then` means that a crash now would have the task run again. A request that was never accepted
        (QoS 0) leaves only its turns.
        """
        key = client, request_id
        ended_ms = self.running_ms()
        known = self._index.get(key)
        if known is not None:
            self._index[key] = known._replace(finished=True)
            self._fresh[key] = reply

        add, added = self._appending(client, turns, ended_ms) if turns is not None else (_nothing, _nothing)

        def apply() -> None:
            self._file.finish(key, reply, ended_ms)
            add()

        def committed() -> None:
            self._fresh.pop(key, None)
            added()

        self._queue.put(_Write(apply, then, committed, must=True))

    def append_turns(self, client: str, turns: Turns, then: Then) -> None:
        """Add messages to a session, outside any request's end. Retried until the disk takes it."""
        add, added = self._appending(client, turns, self.running_ms())
        self._queue.put(_Write(add, then, added, must=True))

    def delivered(self, client: str, request_id: str) -> None:
        """The reply reached the broker. Written with the next commit: after a crash it may be sent once more."""
        self._queue.put(_Write(lambda: self._file.deliver((client, request_id)), must=True, lazy=True))

    def forget(self, client: str, request_id: str, then: Then = _nothing) -> None:
        """Remove a request whose error says `retry_after_ms`: a repeat is a new one."""
        key = client, request_id
        self._index.pop(key, None)
        self._queue.put(_Write(lambda: self._file.forget(key), then, must=True))

    def forget_session(self, client: str, session: str, then: Then) -> None:
        """Remove a session and what was said in it. Retried until the disk takes it."""
        key = client, session

        def committed() -> None:
            with self._lock:
                self._commits += 1
                self._sessions.pop(key, None)

        self._queue.put(_Write(lambda: self._file.forget_session(key), then, committed, must=True))

    def barrier(self, then: Then) -> None:
        """`then` is called once all that was written before is on the disk."""
        self._queue.put(_Write(_nothing, then))

    def sweep(self, then: Then = _nothing) -> None:
        """Drop what is too old; the journal does so by itself, once a minute."""
        self._queue.put(self._sweep(then))

    # --- the writing thread

    def _run(self) -> None:
        more = True
        while more:
            batch, more = self._gather()
            due = self._monotonic_ms() - self._swept_ms >= SWEEP_S * 1000
            if due and (self._index or self._has_sessions):
                batch.append(self._sweep(_nothing))
            if batch:
                self._commit(batch)

    def _gather(self) -> tuple[list[_Write], bool]:
        """What to write now, and whether more may come: waits for the first, then takes what else is there."""
        batch: list[_Write] = []
        try:
            write = self._queue.get(timeout=LATER_S if self._later else SWEEP_S)
        except queue.Empty:
            return self._with_later(batch), True
        while write is not None:
            (self._later if write.lazy else batch).append(write)
            if self._queue.empty() or len(batch) + len(self._later) >= MAX_BATCH:
                break
            write = self._queue.get()
        ready = batch or write is None or len(self._later) >= MAX_BATCH
        return self._with_later(batch) if ready else [], write is not None

    def _with_later(self, batch: list[_Write]) -> list[_Write]:
        later, self._later = self._later, []
        return later + batch

    def _commit(self, batch: list[_Write]) -> None:
        """All in one transaction; if that fails, each in its own, so that one can't spoil it for the others."""
        try:
            with self._file.transaction():
                for write in batch:
                    write.apply()
                if self._sync_delay_s:
                    time.sleep(self._sync_delay_s)
        except Exception as error:  # noqa: BLE001 - whatever one write does, the others' must go on
            if len(batch) == 1:
                self._fail(batch[0], error)
                return
            for write in batch:
                self._commit([write])
            return
        self._trouble = ""
        for write in batch:
            write.committed()
            self._tell(write.then, None)

    def _fail(self, write: _Write, error: Exception) -> None:
        if str(error) != self._trouble:
            self._trouble = str(error)
            log.error("the journal can't write: %s", error, exc_info=not isinstance(error, sqlite3.OperationalError))
        if write.must and isinstance(error, sqlite3.OperationalError):
            self._later.append(replace(write, then=_nothing))
        what = f"the journal can't write ({error}): see to its disk, and repeat the request"
        self._tell(write.then, StoreError(what, retry_after_ms=RETRY_AFTER_MS))

    def _tell(self, then: Then, error: LLMasOSError | None) -> None:
        try:
            then(error)
        except Exception:
            log.exception("a caller of the journal failed")

    def _appending(self, client: str, turns: Turns, now_ms: int) -> tuple[Callable[[], None], Callable[[], None]]:
        """What adds the turns inside the transaction, and what does after it."""
        key = client, turns.session
        had = 0

        def apply() -> None:
            nonlocal had
            had = self._file.append_turns(key, turns.messages, now_ms)

        def committed() -> None:
            with self._lock:
                self._commits += 1
                self._has_sessions = True
                cached = self._sessions.get(key)
                # One that was read since the commit has them already.
                if cached is not None and len(cached) == had:
                    cached.extend(turns.messages)

        return apply, committed

    def _sweep(self, then: Then) -> _Write:
        now_ms = self.running_ms()
        self._swept_ms = self._monotonic_ms()
        requests: list[Key] = []
        sessions: list[Key] = []

        def apply() -> None:
            requests[:], sessions[:] = self._file.sweep(now_ms, REMEMBER_MS, self._keep_ms)

        def committed() -> None:
            for key in requests:
                self._index.pop(key, None)
            with self._lock:
                self._commits += 1
                self._has_sessions = self._file.has_sessions()
                for key in sessions:
                    self._sessions.pop(key, None)
            if sessions:
                self.on_expired(tuple(sessions))

        return _Write(apply, then, committed)
