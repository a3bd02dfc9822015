"""Tests of the benchmarks' command line: what there is, and what its options are; nothing is measured."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    *("decode", "mqtt", "memory", "footprint", "models", "budget", "worker"),
    *("swap-crash", "fit", "pressure", "sessions", "prefix", "kernel"),
    *("simulate", "promises", "urgent", "throughput", "cores", "prefill", "live-promises"),
)


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)


def test_help_lists_every_benchmark() -> None:
    """Each has its line, and nothing is run."""
    done = benchmarks("--help")
    assert done.returncode == 0
    assert [name for name in NAMES if f"\n    {name}" in done.stdout] == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_explains_its_options(name: str) -> None:
    """Its help says what it measures."""
    done = benchmarks(name, "--help")
    assert done.returncode == 0
    assert f"usage: benchmarks {name}" in done.stdout


def test_an_unknown_name_is_refused() -> None:
    """The message names those that there are."""
    done = benchmarks("speed")
    assert done.returncode == 2
    assert all(name in done.stderr for name in NAMES)
