"""The machine as the kernel reports it: memory of processes, RAM, limits, pressure, temperature, cores. Sizes in bytes.

Sources: proc(5), the kernel's cgroup-v1/memory, cgroup-v2 and psi documents. What a machine does not tell is None.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")
STACK: Final = 16 * 1024  # bytes of a thread's kernel stack, on x86-64 and arm64
NO_LIMIT: Final = 2**62  # version 1 says "none" with a number near 2**63


@dataclass(frozen=True)
class ProcessMemory:
    """One process: what is resident, its fair share of that, and how much is anonymous or shared with others."""

    pid: int
    rss: int
    pss: int
    anonymous: int
    shared: int


@dataclass(frozen=True)
class WorkerMemory:
    """One process as the budget counts it: resident pages of mapped model files, and all else that nobody can take away
    from it: anonymous memory, page tables, and a kernel stack for each thread. The arena is nobody's part.
    """

    weights: int
    private: int


@dataclass(frozen=True)
class SystemMemory:
    total: int
    available: int


@dataclass(frozen=True)
class Pressure:
    """Percent of the last 10 s in which some task, or all of them, waited for memory."""

    some: float
    full: float


def process_memory(pid: int, proc: Path = PROC) -> ProcessMemory | None:
    """The memory of one process, or None when it is gone (or another user's)."""
    try:
        lines = (proc / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    sizes = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
    if "Pss" not in sizes:  # a zombie
        return None
    shared = sizes["Shared_Clean"] + sizes["Shared_Dirty"]
    return ProcessMemory(pid, sizes["Rss"], sizes["Pss"], sizes["Anonymous"], shared)


def worker_memory(pid: int, proc: Path = PROC) -> WorkerMemory | None:
    """From the process's list of mappings: some 4 ms for a worker. None when it is gone (or another user's)."""
    try:
        mappings, status = ((proc / str(pid) / name).read_text() for name in ("smaps", "status"))
    except OSError:
        return None
    weights = anonymous = rss = 0
    name = ""
    for line in mappings.splitlines():
        key, _, value = line.partition(" ")
        if not key.endswith(":"):
            name = line
        elif key == "Rss:":
            rss = _kib(value)
        elif key == "Anonymous:":
            own = _kib(value)
            anonymous += own
            if name.endswith(".gguf"):
                weights += rss - own
    facts = dict(line.split(":", 1) for line in status.splitlines())
    kernel = _kib(facts.get("VmPTE", "0")) + int(facts.get("Threads", 0)) * STACK
    return WorkerMemory(weights, anonymous + kernel) if mappings else None


def _kib(text: str) -> int:
    return int(text.split(maxsplit=1)[0]) * 1024


def tree_memory(pid: int) -> list[ProcessMemory]:
    """The memory of a process and of all below it, the process first."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = (process_memory(each) for each in (pid, *(child.pid for child in below)))
    return [memory for memory in found if memory is not None]


def system_memory() -> SystemMemory:
    memory = psutil.virtual_memory()
    return SystemMemory(memory.total, memory.available)


def cgroup_limit(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """The least memory limit of this process's cgroup and of those above it, or None without one."""
    files = {"v1": "memory.limit_in_bytes", "v2": "memory.max"}
    limits = [_limit(folder / files[version]) for version, folder in cgroup_folders(proc, cgroups)]
    return min((limit for limit in limits if limit is not None), default=None)


def cgroup_folders(proc: Path = PROC, cgroups: Path = CGROUPS) -> Iterator[tuple[str, Path]]:
    """This process's cgroup and those above it, where memory is counted: "v1" or "v2", and the folder."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, place = line.split(":", 2)
        if number == "0":
            yield from (("v2", folder) for folder in _upwards(cgroups, place))
        elif "memory" in controllers.split(","):
            yield from (("v1", folder) for folder in _upwards(cgroups / "memory", place))


def _upwards(mount: Path, place: str) -> Iterable[Path]:
    group = mount / place.lstrip("/")
    return (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _limit(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < NO_LIMIT else None


def memory_pressure(proc: Path = PROC) -> Pressure | None:
    """Memory pressure, or None where the kernel does not measure it."""
    try:
        lines = (proc / "pressure" / "memory").read_text().split("\n")
    except OSError:
        return None
    averages = {words[0]: float(words[1].removeprefix("avg10=")) for line in lines if (words := line.split())}
    return Pressure(averages["some"], averages["full"])


def temperature_c() -> float | None:
    """The hottest sensor, in degrees Celsius."""
    sensors = psutil.sensors_temperatures()
    return max((reading.current for readings in sensors.values() for reading in readings), default=None)


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))
