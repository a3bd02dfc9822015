"""Memory: what the daemon and a worker take, part by part, and what the ledger charged for it."""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import describe
from benchmarks.node import MODEL, ROOT, BenchNode, model_file
from benchmarks.report import table, verdict
from llmasos_edge.engine.gguf import read_header
from llmasos_edge.engine.kv_pool import PREFIXES
from llmasos_edge.services.monitor import process_memory

TITLE: Final = (
    "the daemon without a model (PSS, idle CPU), a worker beside its weights and buffers, charged and measured"
)
DAEMON_GOAL_MB: Final = 45
CPU_GOAL: Final = 0.5  # percent of a core
WORKER_GOAL_MB: Final = 35
MB: Final = 1_000_000
SETTLE_S: Final = 3.0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--idle", type=float, default=20.0, metavar="S", help="seconds of watching an idle node (20)")


def run(options: argparse.Namespace) -> None:
    describe("memory")
    with BenchNode(loaded=False) as node:
        time.sleep(SETTLE_S)
        pss = _pss(node.process.pid)
        before = _cpu_s(node.process.pid)
        time.sleep(options.idle)
        cpu = (_cpu_s(node.process.pid) - before) / options.idle * 100
    _print_daemon(pss, cpu, options.idle)
    with BenchNode() as node:
        _exercise(node)
        worker = _worker_of(node.process.pid)
        _print_worker(node, worker)
        _print_ledger(node.call("mem"))


def _print_daemon(pss: int, cpu: float, seconds: float) -> None:
    rows = [
        ("daemon without a model, PSS MB", f"{pss / MB:.1f}", verdict(pss / MB, DAEMON_GOAL_MB, at_most=True)),
        (f"its CPU in {seconds:.0f} idle seconds, % of a core", f"{cpu:.2f}", verdict(cpu, CPU_GOAL, at_most=True)),
    ]
    table(("what", "measured", "goal"), rows)


def _exercise(node: BenchNode) -> None:
    """Touch the buffers: a step of 512 tokens, and one with a row of logits for each of the 16 sequences."""
    node.call("submit", op="generate", body={"prompt": "The sea is deep. " * 160, "max_tokens": 2})
    body = {"prompt": "Once upon a time", "max_tokens": 16}
    threads = [
        threading.Thread(target=node.call, args=("submit",), kwargs={"op": "generate", "body": body}) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _print_worker(node: BenchNode, worker: int) -> None:
    """Proportional set size, less what is no overhead: sizes of buffers as llama.cpp tells them, of this very shape."""
    (row,) = node.call("models")
    rows_of_logits = row["sequences"] + PREFIXES + 2
    sizes = _buffers(row["cells"], rows_of_logits)
    kv = read_header(model_file()).kv_bytes(row["cells"], "q8_0")
    parts = {
        "weights: mapped pages of the model file": _mapped(worker, ".gguf"),
        "arena: mapped pages of its memfd": _mapped(worker, "/memfd:"),
        f"KV: {row['cells']} cells (llama.cpp says {sizes['KV'] / MB:.1f})": kv,
        "compute buffer": sizes["compute"],
        # of the rows that it has room for, so many were written
        f"output buffer: {row['sequences']} of {rows_of_logits} rows": sizes["output"]
        * row["sequences"]
        // rows_of_logits,
        "vocabulary: growth by a load of it alone": sizes["vocabulary"],
    }
    whole = _pss(worker)
    beside = whole - sum(parts.values())
    rows = [("worker, PSS MB", f"{whole / MB:.1f}", "")]
    rows += [(f"  less {name}", f"{size / MB:.1f}", "") for name, size in parts.items()]
    rows.append(("worker beside these", f"{beside / MB:.1f}", verdict(beside / MB, WORKER_GOAL_MB, at_most=True)))
    table(("what", "MB", "goal"), rows)


def _print_ledger(mem: dict[str, Any]) -> None:
    """What `llmasos mem` tells: charges by region, and what the system reports of the process that holds them."""
    (model,) = [each for each in mem["models"] if each["id"] == MODEL]
    rows = [(region["name"], f"{region['bytes'] / MB:.1f}", "") for region in mem["regions"]]
    rows.append((f"{MODEL}, all of it", f"{model['charged'] / MB:.1f}", f"{model['measured'] / MB:.1f}"))
    rows.append(("node", f"{mem['charged'] / MB:.1f}", f"{mem['measured'] / MB:.1f}"))
    rows.append(("budget", f"{mem['budget'] / MB:.1f}", ""))
    table(("ledger", "charged MB", "measured MB"), rows)


# ---- what the system tells (proc(5))


def _pss(pid: int) -> int:
    memory = process_memory(pid)
    if memory is None:
        sys.exit(f"benchmarks: process {pid} is gone")
    return memory.pss


def _cpu_s(pid: int) -> float:
    """Seconds of CPU that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _worker_of(daemon: int) -> int:
    for pid in _children(daemon):
        if b"llmasos_edge.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    sys.exit("benchmarks: the daemon has no worker")


def _children(pid: int) -> Iterator[int]:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, children.read_text().split())


def _mapped(pid: int, name: str) -> int:
    """Proportional set size of the mappings whose file's name holds `name`."""
    total, wanted = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            wanted = name in line
        elif wanted and first == "Pss:":
            total += int(line.split()[1]) * 1024
    return total


def _buffers(cells: int, sequences: int) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.buffers", str(cells), str(sequences)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"benchmarks: {' '.join(command)}: {done.stderr[-1000:]}")
    sizes: dict[str, int] = json.loads(done.stdout)
    return sizes
