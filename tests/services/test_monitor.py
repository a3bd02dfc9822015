"""Tests of the monitor, on this machine's own /proc and on imitations of other kernels'."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos_edge.services.monitor import (
    Pressure,
    ProcessMemory,
    WorkerMemory,
    cgroup_limit,
    cores,
    memory_pressure,
    process_memory,
    system_memory,
    temperature_c,
    tree_memory,
    worker_memory,
)

MIB = 2**20


def test_own_memory_grows_by_what_is_touched() -> None:
    """Anonymous memory and PSS grow by the pages that this process writes."""
    before = process_memory(os.getpid())
    with mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as region:
        for page in range(0, len(region), mmap.PAGESIZE):
            region[page] = 1
        after = process_memory(os.getpid())
    assert before is not None
    assert after is not None
    assert after.anonymous - before.anonymous == pytest.approx(16 * MIB, abs=4 * MIB)
    assert after.pss - before.pss == pytest.approx(16 * MIB, abs=4 * MIB)
    assert after.pss <= after.rss


def test_a_tree_has_its_children() -> None:
    """A child process is counted with its parent, and not once it is gone."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        if child.stdout is not None:
            child.stdout.readline()
        assert [memory.pid for memory in tree_memory(os.getpid())] == [os.getpid(), child.pid]
    assert process_memory(child.pid) is None
    assert tree_memory(child.pid) == []


def test_system() -> None:
    """This machine has memory, of which not all is free, and at least one core."""
    memory = system_memory()
    assert 0 < memory.available < memory.total
    assert 1 <= cores() <= (os.cpu_count() or 1)
    assert (temperature_c() or 40) > -50


def files(root: Path, **contents: str) -> None:
    for name, content in contents.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_rollup(tmp_path: Path) -> None:
    """The kernel's kB become bytes."""
    lines = ["Rss: 300 kB", "Pss: 200 kB", "Shared_Clean: 60 kB", "Shared_Dirty: 40 kB", "Anonymous: 150 kB"]
    files(tmp_path, **{"7__smaps_rollup": "\n".join(["55-7f [rollup]", *lines])})
    assert process_memory(7, tmp_path) == ProcessMemory(7, 300 * 1024, 200 * 1024, 150 * 1024, 100 * 1024)


def test_a_workers_memory(tmp_path: Path) -> None:
    """Weights and private memory apart; a library's own pages and the arena's count for nothing."""
    mappings = [
        ("/lib/libc.so", 100, 8),
        ("/models/blobs/ab12.gguf", 5000, 0),
        ("/memfd:llmasos-m (deleted)", 40, 0),
        ("[heap]", 300, 300),
    ]
    lines = []
    for name, rss, anonymous in mappings:
        lines += [f"7f00-7f10 r--p 00000000 00:01 5    {name}", f"Rss:    {rss} kB", f"Anonymous:   {anonymous} kB"]
    files(tmp_path, **{"7__smaps": "\n".join(lines), "7__status": "Name:\tx\nVmPTE:\t      12 kB\nThreads:\t3\n"})
    assert worker_memory(7, tmp_path) == WorkerMemory(weights=5000 * 1024, private=(320 + 3 * 16) * 1024)
    assert worker_memory(8, tmp_path) is None


def test_own_memory_is_the_same_both_ways() -> None:
    """What the list of mappings adds up to is what the kernel's own sum says, with page tables and stacks."""
    listed, summed = worker_memory(os.getpid()), process_memory(os.getpid())
    assert listed is not None
    assert summed is not None
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    kernel = int(status["VmPTE"].split()[0]) * 1024 + int(status["Threads"]) * 16384
    assert kernel > 0
    assert listed.private == pytest.approx(summed.anonymous + kernel, abs=MIB)


def test_cgroup_v2(tmp_path: Path) -> None:
    """The least limit on the way up counts, and "max" is none."""
    files(tmp_path, self__cgroup="0::/a/b\n", sys__a__b__memory_dot_max="max\n", sys__a__memory_dot_max="4096\n")
    assert cgroup_limit(tmp_path, tmp_path / "sys") == 4096


def test_cgroup_v1(tmp_path: Path) -> None:
    """Version 1 has a tree for memory; a number near 2**63 is none."""
    files(
        tmp_path,
        self__cgroup="3:cpu:/x\n2:memory:/a\n",
        sys__memory__memory_dot_limit_in_bytes=f"{2**63 - 4096}\n",
        sys__memory__a__memory_dot_limit_in_bytes="8192\n",
    )
    assert cgroup_limit(tmp_path, tmp_path / "sys") == 8192


def test_no_cgroup(tmp_path: Path) -> None:
    """Without cgroups, or without a limit, there is none."""
    assert cgroup_limit(tmp_path, tmp_path) is None
    files(tmp_path, self__cgroup="0::/\n", memory_dot_max="max\n")
    assert cgroup_limit(tmp_path, tmp_path) is None


def test_pressure(tmp_path: Path) -> None:
    """The ten-second averages are read; a kernel without them gives None."""
    assert memory_pressure(tmp_path) is None
    line = "{} avg10={} avg60=0.00 avg300=0.00 total=12\n"
    files(tmp_path, pressure__memory=line.format("some", "1.50") + line.format("full", "0.25"))
    assert memory_pressure(tmp_path) == Pressure(some=1.5, full=0.25)
