"""The swap file's data: a file of fixed size, read and written straight from and to mapped memory, without the GIL."""

import errno
import fcntl
import os
from pathlib import Path

from llmasos_edge.errors import StoreError
from llmasos_edge.kernel.memory.extent import Extent
from llmasos_edge.services.disk import FULL, free_bytes


class SwapDisk:
    """Raises OSError, but where it says something else. `found` bytes were there when it was opened."""

    def __init__(self, path: Path) -> None:
        """StoreError if it can't be opened, or another node has it."""
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StoreError(f"swap file {path}: {error.strerror}: see to memory.swap.path") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise StoreError(
                f"swap file {path}: another node uses it: give each a memory.swap.path of its own"
            ) from None
        self.found = os.fstat(self._file).st_size
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def allocate(self, size: int) -> None:
        """Make it so long, with room on the disk for all of it; StoreError if there is none."""
        try:
            os.posix_fallocate(self._file, 0, size)
            os.ftruncate(self._file, size)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, min(size, self.found))
            if error.errno not in FULL:
                raise StoreError(f"swap file {self._path}: {error.strerror}: see to its disk") from None
            free = free_bytes(self._path.parent)
            needed = size - self.found
            raise StoreError(
                f"swap file {self._path}: the disk is full: {needed} bytes more are needed, {free} are free. "
                "Free some room, or make memory.swap.size smaller.",
                details={"needed": needed, "free": free},
            ) from None

    def write(self, piece: memoryview, offset: int) -> None:
        """Write all of the piece; it is on the disk after the next `sync`."""
        done = os.pwrite(self._file, piece, offset)
        if done < len(piece):
            with piece[done:] as rest:
                self.write(rest, offset + done)

    def read(self, piece: memoryview, offset: int) -> None:
        """Fill the piece."""
        done = os.preadv(self._file, [piece], offset)
        if done == 0:
            raise OSError(errno.EIO, f"the swap file ends at {offset}: it was cut off")
        if done < len(piece):
            with piece[done:] as rest:
                self.read(rest, offset + done)

    def sync(self) -> None:
        os.fdatasync(self._file)

    def drop_cache(self, extent: Extent) -> None:
        """Give the page cache's memory back; what is not on the disk yet stays."""
        os.posix_fadvise(self._file, extent.offset, extent.size, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self._file)
