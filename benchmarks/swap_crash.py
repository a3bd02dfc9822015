"""Swap file: a program that swaps out is killed (SIGKILL) at random moments, over and over, and its swap file read."""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.machine import describe
from benchmarks.node import ROOT
from benchmarks.report import table, verdict
from benchmarks.swap_load import ARENA, SWAP, damaged
from llmasos_edge.kernel.units import SegmentId
from llmasos_edge.services.arena_memory import ArenaMemory
from llmasos_edge.services.swapfile import SwapFile

TITLE: Final = "the swap file: kill -9 at random moments during swap-out; what its index says must be there, whole"
LONGEST_S: Final = 0.3  # from the program's first word to its end


@dataclass
class Findings:
    """Counted over all kills; `promised` is what the next swap file must have."""

    counts: Counter[str] = field(default_factory=Counter)
    promised: set[SegmentId] = field(default_factory=set)
    last: int = 0  # number of a segment


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="how often it is killed (200)")


def run(options: argparse.Namespace) -> None:
    describe("swap-crash")
    findings = Findings()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.kills):
            kill_once(Path(folder) / "swap", number, findings)
    counts = findings.counts
    rows = [
        ("kills during swap-out", options.kills, ""),
        ("segments told Written", counts["written"], ""),
        ("segments found after the kills, in all", counts["found"], ""),
        ("of these damaged", counts["damaged"], verdict(counts["damaged"], 0, at_most=True)),
        ("told Written, and not found", counts["lost"], verdict(counts["lost"], 0, at_most=True)),
        ("indexes put aside, rows dropped", counts["reports"], verdict(counts["reports"], 0, at_most=True)),
    ]
    table(("what", "count", "goal"), rows)


def kill_once(folder: Path, seed: int, findings: Findings) -> None:
    """Start it where the one before was killed, kill it too, and look."""
    command = [sys.executable, "-m", "benchmarks.swap_load", str(folder), str(seed), str(findings.last)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as program:
        if program.stdout is None or program.stdout.readline() != "ready 0\n":
            program.kill()
            sys.exit("benchmarks: swap_load did not start")
        time.sleep(random.Random(seed).uniform(0, LONGEST_S))
        program.kill()
        said = program.stdout.read().splitlines()
    for line in said:
        what, _, number = line.partition(" ")
        segment = SegmentId(int(number))
        findings.counts[what] += 1
        if what == "written":
            findings.promised.add(segment)
        else:
            findings.promised.discard(segment)
    _look(folder, findings)


def _look(folder: Path, findings: Findings) -> None:
    memory = ArenaMemory(ARENA)
    reports: list[str] = []
    swap = SwapFile(folder, SWAP, memory, lambda _: None, report=lambda kind, _: reports.append(kind))
    stored = swap.load()
    swap.stop()
    memory.close()
    found = {each.record.segment for each in stored}
    findings.counts["found"] += len(found)
    findings.counts["damaged"] += len(damaged(folder, stored))
    findings.counts["lost"] += len(findings.promised - found)
    findings.counts["reports"] += len(reports)
    # What was written and not told any more, or told forgotten and not struck off, is there too.
    findings.promised = found
    findings.last = max([findings.last, *found]) + 1000
