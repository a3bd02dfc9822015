"""A limit: a control group of a benchmark's own with so much memory, of version 1 or 2, made and removed."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.resident import children

CGROUPS: Final = Path("/sys/fs/cgroup")
PATIENCE_S: Final = 5.0
MEMORY: Final = "memory"


class Version(NamedTuple):
    """Where its memory controller is, and what its files are called; `kill_field` is a field of `events`."""

    root: Path
    limit: str
    most: str
    kernel: str
    events: str


ONE: Final = Version(
    CGROUPS / MEMORY, "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.kmem.max_usage_in_bytes",
    "memory.oom_control",
)  # fmt: skip
TWO: Final = Version(CGROUPS, "memory.max", "memory.peak", "memory.stat", "memory.events")


def _version() -> Version:
    """Ends the benchmark where no group can be made."""
    controllers = CGROUPS / "cgroup.controllers"
    if controllers.is_file() and MEMORY in controllers.read_text().split():
        (CGROUPS / "cgroup.subtree_control").write_text(f"+{MEMORY}")
        return TWO
    if not (ONE.root / ONE.limit).exists() and not ONE.root.is_dir():
        sys.exit("benchmarks: there is no memory controller: run it with root on a machine with cgroups")
    return ONE


class Limit:
    """A context: whatever `wrapper` runs is inside, with all its children, and has so many bytes."""

    def __init__(self, size: int) -> None:
        self._version, self._size = _version(), size
        self.folder = self._version.root / f"llmasos-bench-{time.monotonic_ns()}"

    @property
    def wrapper(self) -> tuple[str, ...]:
        """Words before a command that put it into the group."""
        return "sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh"

    @property
    def kills(self) -> int:
        """Processes that the kernel has killed for the limit's sake."""
        fields = dict(line.split() for line in self._read(self._version.events).splitlines())
        return int(fields["oom_kill"])

    @property
    def most(self) -> int:
        """Page cache included: the limit itself, as a rule."""
        return int(self._read(self._version.most))

    @property
    def most_kernel(self) -> int:
        """Slabs included, which proc(5) does not tell by process; of version 2, what is there now."""
        text = self._read(self._version.kernel).split()
        return int(text[text.index("kernel") + 1] if "kernel" in text else text[0])

    def release(self, pid: int, name: str) -> None:
        """Take a child out of it, and what it has."""
        for child in children(pid):
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                (self._version.root / "cgroup.procs").write_text(str(child))

    def _read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir()
            (self.folder / self._version.limit).write_text(str(self._size))
        except OSError as error:
            sys.exit(f"benchmarks: {self.folder} can't be made, run it with root: {error.strerror}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.folder.exists() and time.monotonic() < deadline:
            with suppress(OSError):  # somebody is still in it
                self.folder.rmdir()
            time.sleep(0.05)


def major_faults(daemon: int) -> int:
    """Of the daemon, its workers, and all its children that have ended (proc_pid_stat(5))."""
    found = sum(_faults(daemon))
    for child in children(daemon):
        with suppress(OSError):  # it has just ended
            found += sum(_faults(child))
    return found


def _faults(pid: int) -> tuple[int, int]:
    """Its own, and its ended children's."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[9]), int(fields[10])
