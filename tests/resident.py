"""What a node's processes really hold, read from the kernel while they work: for tests and benchmarks of the budget.

Counted are anonymous memory (smaps_rollup), the arena's memfds, once (the blocks that they have, mapped or not),
resident pages of model files (smaps), and of kernel memory page tables (VmPTE) and stacks (one for each thread).
Not counted: other pages of files, which are code; the broker; and slabs, which proc(5) does not tell by process.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

PROC: Final = Path("/proc")
KIB: Final = 1024
STACK: Final = 16 * KIB  # of a thread in the kernel: x86-64 and arm64
BLOCK: Final = 512  # the unit of st_blocks (stat(2))
MODEL: Final = re.compile(r"/([^/\n]+)\.gguf\n(?:[A-Z].*\n)*?Rss: +(\d+) kB\n(?:[A-Z].*\n)*?Anonymous: +(\d+) kB")
BROKER: Final = "mosquitto"


class Taken(NamedTuple):
    """Bytes of one process, or of all. `shared`: the arena's memfds, which are the daemon's."""

    anonymous: int = 0
    shared: int = 0
    weights: int = 0
    kernel: int = 0

    @property
    def total(self) -> int:
        return sum(self)


def together(each: Iterator[Taken]) -> Taken:
    return Taken(*(sum(column) for column in zip(*each, strict=True)))


def taken(daemon: int) -> dict[str, Taken]:
    """The daemon's, and by the name of its model file that of each worker; a process without a model by its number."""
    found = {"daemon": _taken(daemon)[1]._replace(shared=_memfds(daemon))}
    for pid in children(daemon):
        with suppress(OSError):  # it has just gone
            if (PROC / str(pid) / "comm").read_text().strip() != BROKER:
                name, its = _taken(pid)
                found[name or str(pid)] = its
    return found


def children(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for each in (PROC / str(pid) / "task").glob("*/children"):
            with suppress(OSError):
                yield from map(int, each.read_text().split())


def _taken(pid: int) -> tuple[str, Taken]:
    folder = PROC / str(pid)
    rollup, maps, status = ((folder / name).read_text() for name in ("smaps_rollup", "smaps", "status"))
    name, weights = "", 0
    for model, rss, own in MODEL.findall(maps):
        name, weights = model, weights + (int(rss) - int(own)) * KIB
    kernel = _field(status, "VmPTE") * KIB + _field(status, "Threads") * STACK
    return name, Taken(_field(rollup, "Anonymous") * KIB, 0, weights, kernel)


def _field(text: str, name: str) -> int:
    """0 of a process that is ending: it has no memory any more."""
    found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _memfds(daemon: int) -> int:
    """Each once, however many descriptors it has."""
    sizes: dict[int, int] = {}
    for link in (PROC / str(daemon) / "fd").iterdir():
        with suppress(OSError):
            if str(link.readlink()).startswith("/memfd:llmasos-"):
                found = link.stat()
                sizes[found.st_ino] = found.st_blocks * BLOCK
    return sum(sizes.values())


class Watch:
    """A context in which a daemon and its workers are read every `every_s`; `peak` is the greatest sum of all."""

    def __init__(self, daemon: int, every_s: float = 0.05) -> None:
        self.samples = 0
        self.peak: dict[str, Taken] = {}
        self._daemon, self._every_s = daemon, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    @property
    def most(self) -> int:
        return together(iter(self.peak.values())).total if self.peak else 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        at = time.monotonic()
        while not self._over.wait(max(0.0, at - time.monotonic())):
            at = time.monotonic() + self._every_s
            with suppress(OSError):  # the daemon is being started, or has gone
                found = taken(self._daemon)
                self.samples += 1
                if together(iter(found.values())).total > self.most:
                    self.peak = found
