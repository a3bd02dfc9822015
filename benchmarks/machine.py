"""What figures were measured on: cores, system, versions, and whether anything else keeps the machine busy."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Final

from llmasos_edge import __version__

LOOK_S: Final = 1.0
BUSY: Final = 0.05  # share of all cores that others may use on a quiet machine


def busy_share(seconds: float = LOOK_S) -> float:
    """Share of all cores' time that was used in the next `seconds` (proc_stat(5)); nothing of ours may run."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    total = sum(after) - sum(before)
    idle = sum(after[3:5]) - sum(before[3:5])  # idle, iowait
    return 1 - idle / max(1, total)


def _ticks() -> list[int]:
    return [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


def describe(name: str) -> None:
    """Print the head of a benchmark; a warning too, if the machine is not quiet."""
    share = busy_share()
    load = Path("/proc/loadavg").read_text().split()[:3]
    cores = len(os.sched_getaffinity(0))
    llama = importlib.metadata.version("llama-cpp-python")
    print(f"== {name}")
    print(f"machine: {cores} cores of {_processor()}, {platform.system()} {platform.release()}, load {' '.join(load)}")
    print(f"versions: llmasos-edge {__version__}, Python {platform.python_version()}, llama-cpp-python {llama}")
    if share > BUSY:
        print(f"WARNING: other processes use {share:.0%} of the cores: only the ratios of pairs mean something")


def _processor() -> str:
    """The name of the processor: of x86 (cpuinfo) or of the board (device tree)."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()
