"""The swap file's index: which segment lies where. A row stands for whole data on the disk, whatever happened."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final

from llmasos_edge.errors import StoreError
from llmasos_edge.kernel.memory.backing import Record, StoredSegment
from llmasos_edge.kernel.memory.extent import PAGE, Extent
from llmasos_edge.kernel.units import SegmentId
from llmasos_edge.services import sqlite_file
from llmasos_edge.services.sqlite_file import DAMAGED, OtherVersion

VERSION: Final = 1  # of the table, as its user_version says
TABLES: Final = """
CREATE TABLE segment(
    segment INTEGER PRIMARY KEY, client TEXT NOT NULL, session TEXT NOT NULL, model TEXT NOT NULL,
    fingerprint TEXT NOT NULL, start INTEGER NOT NULL, "end" INTEGER NOT NULL, size INTEGER NOT NULL,
    checksum INTEGER NOT NULL, used_at INTEGER NOT NULL, "offset" INTEGER NOT NULL, length INTEGER NOT NULL);
"""
ALL: Final = """
SELECT segment, client, session, model, fingerprint, start, "end", size, checksum, used_at, "offset", length
FROM segment ORDER BY "offset"
"""
TYPES: Final = (int, str, str, str, str, int, int, int, int, int, int, int)

Report = Callable[[str, dict[str, object]], None]


class SwapIndex:
    """Not thread-safe: one thread has it at a time. Raises sqlite3.Error, but where it says something else."""

    def __init__(self, path: Path, report: Report) -> None:
        """Open it, or make it; one that can't be read is moved aside and reported. StoreError if there can't be one."""
        self._path = path
        try:
            path.touch(mode=0o600)
            self._connection = self._open(report)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"swap index {path}: {error}: see to its disk and folder") from None

    def _open(self, report: Report) -> sqlite3.Connection:
        try:
            return self._opened()
        except OtherVersion as found:
            why = f"version {found}, and this program knows {VERSION}"
        except sqlite3.Error as error:
            if error.sqlite_errorcode not in {*DAMAGED, sqlite3.SQLITE_ERROR}:
                raise
            why = str(error)
        aside = sqlite_file.move_aside(self._path)
        report("swap.index_aside", {"path": str(self._path), "moved_to": str(aside), "why": why})
        return self._opened()

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite_file.open_file(self._path, TABLES, VERSION)
        try:
            connection.execute(ALL).fetchone()  # the table is ours
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close, with a checkpoint."""
        self._connection.close()

    def load(self, end: int, report: Report) -> tuple[list[StoredSegment], set[SegmentId]]:
        """What lies before `end`, in order of place; and what is to be forgotten, each of which is reported."""
        found: list[StoredSegment] = []
        wrong: dict[SegmentId, str] = {}
        for row in self._rows():
            stored = _stored(row)
            why = _contradiction(stored, end) if stored else "a value is of the wrong type"
            if stored is None or why:
                wrong[row[0]] = why
            else:
                found.append(stored)
        for segment in _overlapping(found):
            wrong[segment] = "another segment lies there too"
        for segment, why in wrong.items():
            report("swap.dropped", {"segment": segment, "why": why})
        return [stored for stored in found if stored.record.segment not in wrong], set(wrong)

    def _rows(self) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(ALL).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"swap index {self._path}: {error}: see to its disk") from None

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing, and on the disk at the end."""
        return sqlite_file.transaction(self._connection)

    def add(self, stored: StoredSegment) -> None:
        row = (*astuple(stored.record), stored.extent.offset, stored.extent.size)
        self._connection.execute("INSERT INTO segment VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def forget(self, segments: Iterable[SegmentId]) -> None:
        self._connection.executemany("DELETE FROM segment WHERE segment = ?", ((segment,) for segment in segments))

    def move(self, segment: SegmentId, extent: Extent) -> bool:
        """Whether there is such a segment."""
        change = 'UPDATE segment SET "offset" = ?, length = ? WHERE segment = ?'
        return self._connection.execute(change, (extent.offset, extent.size, segment)).rowcount == 1


def _stored(row: tuple[Any, ...]) -> StoredSegment | None:
    """None: SQLite keeps values of any type, and some are of another than ours."""
    if any(type(value) is not kind for value, kind in zip(row, TYPES, strict=True)):
        return None
    *record, offset, length = row
    return StoredSegment(Record(*record), Extent(offset, length))


def _contradiction(stored: StoredSegment, end: int) -> str:
    """What is wrong with it in itself; "" if nothing is."""
    record, extent = stored.record, stored.extent
    if extent.offset % PAGE or extent.size % PAGE or not 0 < record.size <= extent.size:
        return "its size and place don't agree"
    if not 0 <= record.start < record.end:
        return "it has no tokens"
    if extent.offset < 0 or extent.end > end:
        return "it lies outside the swap file"
    return ""


def _overlapping(found: list[StoredSegment]) -> Iterator[SegmentId]:
    """Those that share bytes with another; both, since nobody knows whose the bytes are. In order of place."""
    furthest: StoredSegment | None = None
    for stored in found:
        if furthest is not None and stored.extent.offset < furthest.extent.end:
            yield furthest.record.segment
            yield stored.record.segment
        if furthest is None or stored.extent.end > furthest.extent.end:
            furthest = stored
