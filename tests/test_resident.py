"""Tests of what tests and benchmarks of the budget read of a node's memory from the kernel."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

from tests.resident import Taken, children, taken, together

MIB = 1 << 20


def test_pages_of_the_arena_count_once() -> None:
    """What a memfd holds, not what it could hold, and not how often it is open."""
    memfd = os.memfd_create("llmasos-a")
    os.ftruncate(memfd, MIB)
    os.pwrite(memfd, b"x" * 8192, 65536)
    again = os.dup(memfd)
    shared = taken(os.getpid())["daemon"].shared
    os.close(memfd)
    os.close(again)
    assert shared == 8192


def test_anonymous_memory_and_children_are_seen() -> None:
    """A child that has touched 32 MiB is there with them."""
    before = together(iter(taken(os.getpid()).values())).anonymous
    code = "import sys; room = bytearray(32 << 20); print(flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert child.pid in list(children(os.getpid()))
    seen = taken(os.getpid())
    child.communicate()
    assert together(iter(seen.values())).anonymous - before >= 32 * MIB


def test_weights_are_mapped_model_files(tmp_path: Path) -> None:
    """Resident pages of a `.gguf`, which are not anonymous."""
    with (tmp_path / "m.gguf").open("wb+") as file:
        file.write(b"x" * MIB)
        file.flush()
        before = taken(os.getpid())["daemon"].weights
        with mmap.mmap(file.fileno(), MIB, prot=mmap.PROT_READ) as pages:
            assert sum(pages[::4096]) == 256 * ord("x")
            assert taken(os.getpid())["daemon"].weights == before + MIB


def test_nobody_takes_nothing() -> None:
    """Of no process."""
    assert together(iter(())) == Taken()
