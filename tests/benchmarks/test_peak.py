"""Tests of what the benchmarks read of a node's memory from /proc."""

import os
from pathlib import Path

from benchmarks.peak import STACK, Footprint, Peak, footprint, workers

SMAPS = """\
7f00-7f10 r--s 00000000 fe:00 12 /models/a model.gguf
Size:                 64 kB
Rss:                  48 kB
VmFlags: rd sh
7f20-7f30 r-xp 00000000 fe:00 13 /usr/lib/libc.so.6
Size:                 64 kB
Rss:                  32 kB
"""


def process(proc: Path, pid: int, command: str, anonymous_kb: int, smaps: str = "") -> Path:
    folder = proc / str(pid)
    (folder / "task" / str(pid)).mkdir(parents=True)
    (folder / "fd").mkdir()
    (folder / "task" / str(pid) / "children").write_text("")
    (folder / "cmdline").write_text(command)
    (folder / "status").write_text(f"Name:\tx\nRssAnon:\t{anonymous_kb} kB\nVmPTE:\t4 kB\nThreads:\t2\n")
    (folder / "smaps").write_text(smaps)
    return folder


def node(proc: Path) -> None:
    """A daemon (1) with a worker (2) and a broker (3)."""
    daemon = process(proc, 1, "llmasosd", 100)
    process(proc, 2, "python\0-m\0llmasos_edge.engine.worker\0", 200, SMAPS)
    process(proc, 3, "mosquitto", 400)
    (daemon / "task" / "1" / "children").write_text("2 3 ")


def test_a_footprint_counts_daemon_and_workers(tmp_path: Path) -> None:
    """Anonymous, kernel and weights of both; neither the broker nor libraries."""
    node(tmp_path)
    assert list(workers(1, tmp_path)) == [2]
    assert footprint(1, tmp_path) == Footprint(
        anonymous=300 << 10, kernel=2 * ((4 << 10) + 2 * STACK), weights=48 << 10
    )


def test_pages_of_the_arena_count_once() -> None:
    """What a memfd holds, not what it could hold, and not how often it is open."""
    memfd = os.memfd_create("llmasos-a")
    os.ftruncate(memfd, 1 << 20)
    os.pwrite(memfd, b"x" * 8192, 65536)
    again = os.dup(memfd)
    shared = footprint(os.getpid()).shared
    os.close(memfd)
    os.close(again)
    assert shared == 8192


def test_a_process_that_is_gone_counts_nothing(tmp_path: Path) -> None:
    """A worker may die between two looks."""
    assert footprint(1, tmp_path) == Footprint()


def test_a_peak_is_the_greatest_of_all_looks(tmp_path: Path) -> None:
    """Of all moments, not the last one."""
    node(tmp_path)
    peak = Peak(1, tmp_path)
    peak.look()
    (tmp_path / "2" / "status").write_text("RssAnon:\t1 kB\n")
    peak.look()
    assert peak.greatest.anonymous == 300 << 10
