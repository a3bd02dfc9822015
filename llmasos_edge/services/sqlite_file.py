"""SQLite files that survive a power cut: how they are opened, changed, and moved aside when they are damaged.

WAL with synchronous=FULL: what is committed is on the disk (sqlite.org/pragma.html#pragma_synchronous).
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
PRAGMAS: Final = """
PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=256; PRAGMA journal_size_limit=1048576;
PRAGMA cache_size=-256; PRAGMA temp_store=MEMORY;
"""


class OtherVersion(Exception):
    """The file was made by another version of this program."""


def open_file(path: Path, tables: str, version: int) -> sqlite3.Connection:
    """Open it, or make it with these tables. Raises OtherVersion or sqlite3.Error: of a damaged file, in DAMAGED."""
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        connection.executescript(PRAGMAS)
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            damaged = sqlite3.DatabaseError(found)
            damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damaged
        made_by = connection.execute("PRAGMA user_version").fetchone()[0]
        if made_by not in {0, version}:
            raise OtherVersion(str(made_by))
        if made_by == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {tables} PRAGMA user_version={version}; COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def move_aside(path: Path) -> Path:
    """Rename the file and what belongs to it, to a name that is free; which."""
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and on the disk at the end."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
