"""The durable steps on files that the store is made of: locks, room, hashes, atomic writes, and clear errors."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from llmasos_edge.errors import StoreError

PIECE: Final = 2**20
FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Progress:
    """How far a slow step is, in bytes. Stages: resolve, download, extract, copy, verify."""

    stage: str
    done: int
    total: int


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """A Report for nobody."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One holder at a time, over processes too (flock(2) on the folder itself: it ends with the process)."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def full_disk(folder: Path, needed: int) -> StoreError:
    free = free_bytes(folder)
    return StoreError(
        f"{folder}: the disk is full: {needed} bytes are needed, {free} are free. Free some room and try again.",
        details={"needed": needed, "free": free},
    )


def require_room(folder: Path, needed: int) -> None:
    if needed > free_bytes(folder):
        raise full_disk(folder, needed)


@contextmanager
def making(folder: Path, needed: int, *parts: Path) -> Iterator[None]:
    """Errors of the disk while something is made in `folder` become StoreErrors; when it is full, the parts go."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            for part in parts:
                part.unlink(missing_ok=True)
            raise full_disk(folder, needed) from error
        raise StoreError(f"{error.filename or folder}: {error.strerror or error}") from error


def copy(source: BinaryIO, part: Path, size: int, stage: str, report: Report, start: int = 0) -> None:
    """Appends `source` to `part` from byte `start` on, durably; more than `size` bytes in all are refused."""
    with part.open("ab", buffering=0) as out:
        if os.fstat(out.fileno()).st_size > start:
            out.truncate(start)
        done = start
        while piece := source.read(PIECE):
            done += len(piece)
            if done > size:
                part.unlink()
                raise StoreError(f"{part.name}: more than the {size} bytes that it should have")
            _write(out.fileno(), piece)
            report(Progress(stage, done, size))
        os.fsync(out.fileno())


def _write(handle: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(handle, view) :]


def sha256_of(path: Path, report: Report = silent) -> str:
    import hashlib  # noqa: PLC0415 - it brings OpenSSL, which a node that only serves does not need in memory

    digest = hashlib.sha256()
    with path.open("rb") as file:
        size, done = os.fstat(file.fileno()).st_size, 0
        while piece := file.read(PIECE):
            digest.update(piece)
            done += len(piece)
            report(Progress("verify", done, size))
    return digest.hexdigest()


def require_sha256(part: Path, expected: str, report: Report = silent) -> None:
    """StoreError, and the part deleted, when its bytes are not the expected ones."""
    if (actual := sha256_of(part, report)) != expected:
        part.unlink()
        raise StoreError(
            f"{part.name}: refused: its sha256 is {actual}, and should be {expected}",
            details={"sha256": actual, "expected": expected},
        )


def install(part: Path, target: Path) -> None:
    """Renames a finished part to its place, durably: the target is there whole, or not at all."""
    part.rename(target)
    sync_folder(target.parent)


def write_durably(target: Path, data: bytes) -> None:
    part = target.with_name(target.name + ".part")
    with making(target.parent, len(data), part):
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        install(part, target)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
