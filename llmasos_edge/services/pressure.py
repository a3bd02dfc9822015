"""Watching for shortage of memory: the control groups with a limit above this process, and the machine.

Sources: the kernel's documents cgroup-v2, cgroup-v1/memory and accounting/psi. Files are read, once a second, rather
than waited for: a PSI trigger tells of stalls only when there are some, and memory that is about to run out is not one.
A service's group counts the events of its workers' groups too (memory.events is hierarchical).
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmasos_edge.kernel.memory.pressure import Space
from llmasos_edge.kernel.units import Bytes
from llmasos_edge.services.monitor import CGROUPS, PROC, cgroup_folders, system_memory

log = logging.getLogger(__name__)
NO_LIMIT: Final = 1 << 62
FILE_PAGES: Final = ("inactive_file", "active_file")


@dataclass(frozen=True, slots=True)
class Names:
    """How a version of control groups calls its files; `prefix`: of counts that include the groups below."""

    limits: tuple[str, ...]
    usage: str
    mapped: str
    prefix: str = ""


V1: Final = Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "mapped_file", "total_")
V2: Final = Names(("memory.max", "memory.high"), "memory.current", "file_mapped")


class Group:
    """A control group; `stalls` is where the time that was waited for memory is counted."""

    def __init__(self, folder: Path, names: Names, stalls: Path) -> None:
        self._folder, self._names = folder, names
        own = folder / "memory.pressure"
        self._stalls = own if names is V2 and own.exists() else stalls
        self._rate, self._hits = Rate(self._stalls), 0
        self._hits = self._count_hits()

    @property
    def limit(self) -> int | None:
        """In bytes."""
        limits = [_number(self._folder / name) for name in self._names.limits]
        return min((each for each in limits if each is not None and each < NO_LIMIT), default=None)

    def space(self, now: float) -> Space | None:
        """None: without a limit nothing is short, or it is gone."""
        limit, used = self.limit, _number(self._folder / self._names.usage)
        if limit is None or used is None:
            return None
        counts, prefix = _pairs(self._folder / "memory.stat"), self._names.prefix
        files = sum(counts.get(prefix + name, 0) for name in FILE_PAGES)
        unmapped = max(0, files - counts.get(prefix + self._names.mapped, 0))
        before, self._hits = self._hits, self._count_hits()
        available = Bytes(max(0, limit - used + unmapped))
        name = f"the control group {self._folder.name}"
        return Space(name, available, Bytes(limit), self._rate.share(now), self._hits - before)

    def _count_hits(self) -> int:
        """How often something was throttled, or had to give way, at a limit."""
        if self._names is V1:
            return _number(self._folder / "memory.failcnt") or 0
        counts = _pairs(self._folder / "memory.events")
        return counts.get("high", 0) + counts.get("max", 0)


class Rate:
    """What share of the time somebody waited, by the total of a PSI file; 0 where there is none."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._total, self._at = self._read(), time.monotonic()

    def share(self, now: float) -> float:
        """Since the last call."""
        before, then = self._total, self._at
        self._total, self._at = self._read(), now
        return (self._total - before) / 1e6 / (now - then) if now > then else 0.0

    def _read(self) -> int:
        """Microseconds."""
        try:
            return int(self._file.read_text().split("total=", 2)[1].split(maxsplit=1)[0])
        except (OSError, IndexError, ValueError):  # EOPNOTSUPP where PSI is compiled in and switched off
            return 0


class Watch:
    """All spaces that this process shares; says in the log what they are."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, proc: Path = PROC, cgroups: Path = CGROUPS) -> None:
        self._clock = clock
        stalls = proc / "pressure" / "memory"
        names = {"v1": V1, "v2": V2}
        self._groups = [Group(folder, names[version], stalls) for version, folder in cgroup_folders(proc, cgroups)]
        self._rate = Rate(stalls)
        limited = [f"{each.limit >> 20} MiB" for each in self._groups if each.limit is not None]
        groups = f"control groups with limits of {', '.join(limited)}" if limited else "no control group has a limit"
        psi = "stalls are counted" if stalls.exists() else "this kernel counts no stalls (`psi=1`)"
        log.info("memory pressure: watching the machine; %s; %s", groups, psi)

    def look(self) -> list[Space]:
        """How things are, and what was waited since the last look."""
        now, machine = self._clock(), system_memory()
        found = [space for group in self._groups if (space := group.space(now)) is not None]
        return [*found, Space("the machine", Bytes(machine.available), Bytes(machine.total), self._rate.share(now))]


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _pairs(file: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
