"""The journal's SQLite file: its tables, and what one transaction does to them.

What is committed survives a power cut (`sqlite_file`). One thread writes; `read` opens a connection of its own for
whoever else needs to look.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass
from pathlib import Path

import msgspec

from llmasos_edge.errors import StoreError
from llmasos_edge.services import sqlite_file
from llmasos_edge.services.sqlite_file import DAMAGED, OtherVersion

VERSION = 1  # of the tables, as their user_version says
TABLES = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('boot', 0), ('running_ms', 0);
CREATE TABLE entry(
    seq INTEGER PRIMARY KEY, client TEXT NOT NULL, id TEXT NOT NULL, task TEXT NOT NULL, op TEXT NOT NULL,
    body BLOB NOT NULL, seed INTEGER NOT NULL, route BLOB NOT NULL, accepted_wall_ms INTEGER NOT NULL,
    deadline_ms INTEGER, accepted_run_ms INTEGER NOT NULL,
    reply BLOB, finished_run_ms INTEGER, delivered INTEGER NOT NULL DEFAULT 0, UNIQUE(client, id));
CREATE TABLE session(
    client TEXT NOT NULL, name TEXT NOT NULL, messages INTEGER NOT NULL, touched_run_ms INTEGER NOT NULL,
    PRIMARY KEY(client, name)) WITHOUT ROWID;
CREATE TABLE turn(
    client TEXT NOT NULL, session TEXT NOT NULL, number INTEGER NOT NULL, message BLOB NOT NULL,
    PRIMARY KEY(client, session, number)) WITHOUT ROWID;
"""
NEWEST = """
SELECT max(value, coalesce((SELECT max(max(accepted_run_ms, coalesce(finished_run_ms, 0))) FROM entry), 0))
FROM meta WHERE key = 'running_ms'
"""
PENDING = """
SELECT client, id, task, op, body, seed, route, accepted_wall_ms, deadline_ms, accepted_run_ms
FROM entry WHERE reply IS NULL ORDER BY seq
"""
ACCEPT = """
INSERT INTO entry(client, id, task, op, body, seed, route, accepted_wall_ms, deadline_ms, accepted_run_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

Key = tuple[str, str]  # client, and the name that the client gave: a request's id, or a session's name
TurnMessage = dict[str, object]


@dataclass(frozen=True, slots=True)
class Entry:
    """An accepted request. `route` is opaque JSON: where its replies go. `accepted_run_ms` is the journal's to set."""

    client: str
    id: str
    task: str
    op: str
    body: bytes
    seed: int
    route: bytes
    accepted_wall_ms: int
    deadline_ms: int | None = None
    accepted_run_ms: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A request with its final reply."""

    client: str
    id: str
    task: str
    route: bytes
    reply: bytes


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session: how many messages it has, and for how many milliseconds of running time nothing was said in it."""

    client: str
    name: str
    messages: int
    idle_ms: int


class JournalFile:
    """The one connection that writes. Its methods raise sqlite3.Error, and belong inside `transaction`."""

    def __init__(self, path: Path, report: Callable[[str, dict[str, object]], None]) -> None:
        """Open or make the file. A damaged one is moved aside and reported; StoreError if there can't be one."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._open()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode not in DAMAGED:
                raise StoreError(f"journal {path}: {error}") from None
            aside = sqlite_file.move_aside(path)
            report("journal.corrupt", {"path": str(path), "moved_to": str(aside), "error": str(error)})
            self._connection = self._open()
        except OSError as error:
            raise StoreError(f"journal {path}: {error}") from None

    def _open(self) -> sqlite3.Connection:
        try:
            return sqlite_file.open_file(self._path, TABLES, VERSION)
        except OtherVersion as found:
            raise StoreError(f"journal {self._path}: made by a newer version of this program ({found})") from None

    def close(self) -> None:
        """Close, with a checkpoint."""
        self._connection.close()

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing, and on the disk at the end."""
        return sqlite_file.transaction(self._connection)

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for any thread, which sees the last commit; StoreError if the disk fails."""
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=5, isolation_level=None)) as connection:
                connection.execute("PRAGMA query_only=ON")
                yield connection
        except sqlite3.Error as error:
            raise StoreError(f"journal {self._path}: {error}") from None

    def begin_boot(self) -> tuple[int, int]:
        """(number of this boot, running time so far in ms); StoreError if the disk is full."""
        try:
            with self.transaction():
                self._connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'boot'")
        except sqlite3.Error as error:
            raise StoreError(f"journal {self._path}: {error}") from None
        boot = self._connection.execute("SELECT value FROM meta WHERE key = 'boot'").fetchone()[0]
        newest = self._connection.execute(NEWEST).fetchone()[0]
        return boot, newest

    def known(self) -> list[tuple[str, str, str, int]]:
        """(client, id, task, whether it has its reply) of every entry."""
        return self._connection.execute("SELECT client, id, task, reply IS NOT NULL FROM entry").fetchall()

    def pending(self) -> list[Entry]:
        """Entries without a reply, in order of acceptance."""
        with self.read() as connection:
            return [Entry(*row) for row in connection.execute(PENDING)]

    def undelivered(self) -> list[Finished]:
        """Replies that the broker has not acknowledged, in order of acceptance."""
        with self.read() as connection:
            rows = connection.execute(
                "SELECT client, id, task, route, reply FROM entry WHERE reply NOT NULL AND NOT delivered ORDER BY seq"
            )
            return [Finished(*row) for row in rows]

    def turns(self, session: Key) -> list[TurnMessage]:
        """A session's messages, oldest first."""
        with self.read() as connection:
            rows = connection.execute(
                "SELECT message FROM turn WHERE client = ? AND session = ? ORDER BY number", session
            )
            return [msgspec.json.decode(row[0], type=TurnMessage) for row in rows]

    def sessions(self, running_ms: int) -> list[SessionRow]:
        """All sessions, the one touched last first."""
        with self.read() as connection:
            rows = connection.execute(
                "SELECT client, name, messages, max(0, ? - touched_run_ms) FROM session ORDER BY touched_run_ms DESC",
                (running_ms,),
            )
            return [SessionRow(*row) for row in rows]

    def forget_session(self, session: Key) -> None:
        """Remove a session and its messages."""
        self._connection.execute("DELETE FROM turn WHERE client = ? AND session = ?", session)
        self._connection.execute("DELETE FROM session WHERE client = ? AND name = ?", session)

    def accept(self, entry: Entry) -> None:
        """Add a request."""
        self._connection.execute(ACCEPT, astuple(entry))

    def finish(self, key: Key, reply: bytes, running_ms: int) -> None:
        """Add the reply, in place of the body."""
        self._connection.execute(
            "UPDATE entry SET reply = ?, finished_run_ms = ?, body = x'' WHERE client = ? AND id = ?",
            (reply, running_ms, *key),
        )

    def reply(self, key: Key) -> bytes | None:
        """The reply of a finished request."""
        row = self._connection.execute("SELECT reply FROM entry WHERE client = ? AND id = ?", key).fetchone()
        return row[0] if row else None

    def deliver(self, key: Key) -> None:
        """The reply reached the broker."""
        self._connection.execute("UPDATE entry SET delivered = 1 WHERE client = ? AND id = ?", key)

    def forget(self, key: Key) -> None:
        """Remove a request."""
        self._connection.execute("DELETE FROM entry WHERE client = ? AND id = ?", key)

    def append_turns(self, session: Key, messages: Sequence[TurnMessage], running_ms: int) -> int:
        """Add messages to a session, which begins with its first; returns how many it had."""
        row = self._connection.execute("SELECT messages FROM session WHERE client = ? AND name = ?", session).fetchone()
        first = row[0] if row else 0
        self._connection.executemany(
            "INSERT INTO turn VALUES (?, ?, ?, ?)",
            [(*session, number, msgspec.json.encode(message)) for number, message in enumerate(messages, first)],
        )
        self._connection.execute(
            "REPLACE INTO session VALUES (?, ?, ?, ?)", (*session, first + len(messages), running_ms)
        )
        return int(first)

    def has_sessions(self) -> bool:
        """Whether there is any session."""
        return self._connection.execute("SELECT 1 FROM session LIMIT 1").fetchone() is not None

    def sweep(self, running_ms: int, remember_ms: int, keep_ms: int) -> tuple[list[Key], list[Key]]:
        """Note the running time; drop delivered replies and idle sessions that are too old: (requests, sessions)."""
        run = self._connection.execute
        run("UPDATE meta SET value = ? WHERE key = 'running_ms'", (running_ms,))
        old = (running_ms - remember_ms,)
        requests = run("SELECT client, id FROM entry WHERE delivered AND finished_run_ms <= ?", old).fetchall()
        run("DELETE FROM entry WHERE delivered AND finished_run_ms <= ?", old)
        idle = run("SELECT client, name FROM session WHERE touched_run_ms <= ?", (running_ms - keep_ms,)).fetchall()
        for session in idle:
            self.forget_session(session)
        return requests, idle
