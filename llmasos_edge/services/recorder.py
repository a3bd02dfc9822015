"""The recorder: writes a workload file while it happens, on a thread of its own, and never more than it may."""

import logging
import os
import queue
import threading
from pathlib import Path
from typing import Final

from llmasos_edge.errors import ConfigError
from llmasos_edge.services.workload import Arrival, Header, line

log = logging.getLogger(__name__)
HEAD_BYTES: Final = 1 << 14  # the header's line, filled up with spaces: it is written anew in place as rates are learnt
MOST_BYTES: Final = 64 << 20  # some 300,000 tasks; what comes after that is not recorded
WAITING: Final = 10_000  # tasks that a slow disk may be behind; more are left out
Item = Header | Arrival | None


class Recorder:
    """`header` and `task` never block. A file that is there already is kept, as FILE.old, until the next start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.Queue[Item] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, name="recorder")
        self._file = -1
        self._size = HEAD_BYTES

    def start(self) -> None:
        """Raises ConfigError if the file can't be made."""
        try:
            if self._path.exists():
                self._path.replace(self._path.with_name(f"{self._path.name}.old"))
            self._file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"scheduler.record: {self._path}: {error.strerror}") from error
        self._thread.start()

    def put(self, item: Header | Arrival) -> None:
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            log.warning("%s: the disk is too slow: a task is not recorded", self._path)

    def stop(self) -> None:
        """When all that was put is written."""
        self._queue.put(None)
        self._thread.join()
        os.close(self._file)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._write(item)
            except OSError as error:
                log.error("%s: nothing more is recorded: %s", self._path, error.strerror)
                break
        while item is not None:
            item = self._queue.get()

    def _write(self, item: Header | Arrival) -> None:
        text = line(item)
        if isinstance(item, Header):
            os.pwrite(self._file, text[:-1].ljust(HEAD_BYTES - 1) + b"\n", 0)
        elif self._size + len(text) <= MOST_BYTES:
            os.pwrite(self._file, text, self._size)
            self._size += len(text)
            if self._size + HEAD_BYTES > MOST_BYTES:
                log.warning("%s: %d MiB: no more tasks are recorded", self._path, MOST_BYTES >> 20)
                self._size = MOST_BYTES
