"""The most memory that a node takes while it is watched: read from /proc four times a second, without any limit."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PROC: Final = Path("/proc")
EVERY_S: Final = 0.25  # a look takes some milliseconds
STACK: Final = 16 << 10  # kernel memory of a thread: its stack; page tables are told by VmPTE
BLOCK: Final = 512  # the unit of st_blocks (stat(2))
_ARENA: Final = "/memfd:llmasos-"


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of all processes together: anonymous; shared (each page once); kernel; resident pages of weights."""

    anonymous: int = 0
    shared: int = 0
    kernel: int = 0
    weights: int = 0

    @property
    def total(self) -> int:
        return self.anonymous + self.shared + self.kernel + self.weights


class Peak:
    """A context: `greatest` is the footprint of a daemon and its workers at their worst moment, as far as it was seen.

    The broker and other children do not count.
    """

    def __init__(self, daemon: int, proc: Path = PROC) -> None:
        self.greatest = Footprint()
        self._daemon, self._proc = daemon, proc
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            self.look()

    def look(self) -> None:
        found = footprint(self._daemon, self._proc)
        if found.total > self.greatest.total:
            self.greatest = found


def footprint(daemon: int, proc: Path = PROC) -> Footprint:
    """Of the daemon and its workers, now."""
    parts = [_process(proc / str(pid)) for pid in (daemon, *workers(daemon, proc))]
    return Footprint(
        anonymous=sum(part.anonymous for part in parts),
        shared=_arena(proc / str(daemon)),
        kernel=sum(part.kernel for part in parts),
        weights=sum(part.weights for part in parts),
    )


def workers(daemon: int, proc: Path = PROC) -> Iterator[int]:
    for children in (proc / str(daemon) / "task").glob("*/children"):
        for pid in map(int, _read(children).split()):
            if "llmasos_edge.engine.worker" in _read(proc / str(pid) / "cmdline"):
                yield pid


def _process(folder: Path) -> Footprint:
    status = dict(re.findall(r"^(\w+):\s+(\d+)", _read(folder / "status"), re.MULTILINE))
    kernel = int(status.get("VmPTE", 0)) * 1024 + int(status.get("Threads", 0)) * STACK
    return Footprint(int(status.get("RssAnon", 0)) * 1024, 0, kernel, _mapped(_read(folder / "smaps"), ".gguf"))


def _mapped(smaps: str, ending: str) -> int:
    """Resident bytes of the mappings of files of such a name."""
    found = re.findall(rf"^\S+-\S+ .*{re.escape(ending)}$\n(?:^[A-Z].*$\n)*?^Rss: +(\d+) kB$", smaps, re.MULTILINE)
    return sum(map(int, found)) * 1024


def _arena(daemon: Path) -> int:
    """The pages that the models' memfds hold, whoever maps them."""
    sizes = {}
    for link in daemon.glob("fd/*"):
        try:
            if str(link.readlink()).startswith(_ARENA):
                found = link.stat()
                sizes[found.st_ino] = found.st_blocks * BLOCK
        except OSError:
            continue  # closed meanwhile
    return sum(sizes.values())


def _read(path: Path) -> str:
    """Empty for a process that is gone."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
