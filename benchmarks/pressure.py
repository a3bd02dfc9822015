"""Memory pressure: a node and a hog in one control group with a limit; what the node gives back, and when."""

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.machine import describe
from benchmarks.node import MODEL, ROOT, STATE, BenchNode, model_file
from benchmarks.report import table
from llmasos_edge.errors import LLMasOSError, NoMemory
from llmasos_edge.services.monitor import CGROUPS, cgroup_folders
from tests.quantized import quantized

TITLE: Final = "a hog grows beside a node in one control group: park, drop, refuse, and back; nobody is killed"
MIB: Final = 1 << 20
LIMIT: Final = 560 * MIB
IDLE_MODEL: Final = "idle"
SESSIONS: Final = 12  # of each model
CLIENTS: Final = 3
PATIENCE_S: Final = 120.0
SPEC: Final = """\
apiVersion: llmasos/v1
kind: Node
metadata: {{{{name: bench, site: bench}}}}
spec:
  memory: {{{{budget: 500MiB, arena: 64MiB, swap: {{{{path: {swap}, size: 512MiB}}}}}}}}
  mqtt: {{{{managed: true, port: 0}}}}
  models: [{{{{name: {{model}}, context: 1024, sequences: 4, kv_pool: 2048, pin: {{pin}}}}}}]
"""
Json = dict[str, Any]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=float, default=8.0, metavar="N", help="MiB that the hog takes a second (8)")


def run(options: argparse.Namespace) -> None:
    describe("pressure")
    swap = Path(tempfile.mkdtemp(prefix="swap-", dir=_made(STATE)))
    try:
        with _group() as group:
            spec = SPEC.format(swap=swap)
            with BenchNode("benchmarks.in_group", str(group.folder), "llmasos_edge.daemon", spec=spec) as node:
                _measure(node, group, options.rate)
    finally:
        shutil.rmtree(swap)


# ---- the group


class Group:
    """A control group of the benchmark's own, with a child for the hog."""

    def __init__(self, folder: Path, version: str) -> None:
        self.folder, self.hog, self._v1 = folder, folder / "hog", version == "v1"
        self.hog.mkdir(parents=True)
        self._write("memory.limit_in_bytes" if self._v1 else "memory.max", str(LIMIT))

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def _count(self, file: str, name: str) -> int:
        lines = (self.folder / file).read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)

    @property
    def faults(self) -> int:
        """Major ones, of all in it."""
        return self._count("memory.stat", "total_pgmajfault" if self._v1 else "pgmajfault")

    @property
    def killed(self) -> int:
        children = ("", "hog/") if self._v1 else ("",)
        return sum(self._count(f"{child}{self._events}", "oom_kill") for child in children)

    @property
    def _events(self) -> str:
        return "memory.oom_control" if self._v1 else "memory.events"

    def remove(self) -> None:
        for folder in (self.hog, self.folder):
            _until(lambda folder=folder: not (folder / "cgroup.procs").read_text(), "its processes end")  # type: ignore[misc]
            folder.rmdir()


@contextmanager
def _group() -> Iterator[Group]:
    place = next(cgroup_folders(), None)
    if place is None:
        sys.exit("benchmarks: pressure: this machine has no memory control groups")
    version, own = place
    parent = own if version == "v1" else CGROUPS
    try:
        group = Group(Path(tempfile.mkdtemp(prefix="llmasos-bench-", dir=parent)), version)
    except OSError as error:
        sys.exit(f"benchmarks: pressure: no control group can be made in {parent}: {error.strerror}; it takes root")
    try:
        yield group
    finally:
        group.remove()


# ---- the load


class Clients:
    """They ask for a turn of some session, again and again, and count what they are told."""

    def __init__(self, node: BenchNode) -> None:
        self._node, self._over = node, threading.Event()
        self.told: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        turn = number
        while not self._over.is_set():
            turn += CLIENTS
            said = _talk(self._node, MODEL, turn % SESSIONS, "Go on.")
            self.told[said] += 1
            if said != "ok":
                time.sleep(0.5)


def _talk(node: BenchNode, model: str, session: int, text: str) -> str:
    """A turn of a session: "ok", or the code of its error."""
    body = {"messages": [{"role": "user", "content": text}], "session": f"{model}-{session}", "max_tokens": 8}
    try:
        reply = node.call("submit", op="chat", body=body | {"model": model})
    except LLMasOSError as error:
        return error.code
    return str(reply["error"]["code"] if reply["status"] == "error" else "ok")


# ---- the measurement


def _measure(node: BenchNode, group: Group, rate: float) -> None:
    _prepare(node)
    trace, faults = Trace(node), group.faults
    with Clients(node) as clients:
        began = time.monotonic()
        with _hog(group, rate) as hog:
            _until(lambda: node.call("status")["pressure"]["level"] == "refuse", "new tasks are refused")
            time.sleep(2)
            taken = hog()
            time.sleep(3)
            during = group.faults - faults
        gone = time.monotonic()
        _until(lambda: node.call("status")["pressure"]["level"] == "none", "it is calm again")
        calm = time.monotonic()
        time.sleep(2)
    back = _talk(node, IDLE_MODEL, 0, "Go on.")
    _print(trace.rows(began), clients.told, taken)
    rows = [
        ("the hog had, MiB, of the group's limit", f"{taken >> 20} of {LIMIT >> 20}"),
        ("killed in the group (OOM)", group.killed),
        ("workers that died", len(trace.of("worker.died"))),
        ("major faults while it grew and held", during),
        ("major faults after that", group.faults - faults - during),
        ("tasks answered; refused; lost", _outcomes(clients.told)),
        ("from the hog's end to normal, s", f"{calm - gone:.1f}"),
        ("the dropped model's next answer", back),
    ]
    table(("what", "measured"), rows)


def _prepare(node: BenchNode) -> None:
    """Another model, and sessions of both, idle."""
    path = quantized(model_file(), STATE.parent / "cache" / "models", "Q4_0")
    with node.client() as client:
        client.call("model.add", path=str(path), name=IDLE_MODEL)
    another = f", {{name: {IDLE_MODEL}, context: 1024, sequences: 4, kv_pool: 2048}}]\n"
    node.config.write_text(node.config.read_text().replace("]\n", another))
    node.call("reload")
    for model in (MODEL, IDLE_MODEL):
        for session in range(SESSIONS):
            said = _talk(node, model, session, "The lamp burns and the keeper counts the ships. " * 20)
            if said != "ok":
                sys.exit(f"benchmarks: pressure: a session could not be made: {said}")


@contextmanager
def _hog(group: Group, rate: float) -> Iterator[Callable[[], int]]:
    """It grows inside this context; the call ends that, and tells how much it has."""
    command = [sys.executable, "-m", "benchmarks.in_group", str(group.hog), "benchmarks.hog", str(rate)]
    hog = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def stop() -> int:
        if hog.stdin is None or hog.stdout is None:
            return 0
        hog.stdin.write("enough\n")
        hog.stdin.flush()
        return int(hog.stdout.readline() or 0)

    try:
        yield stop
    finally:
        hog.kill()
        hog.communicate()


class Trace:
    """What the node tells of itself from now on."""

    def __init__(self, node: BenchNode) -> None:
        self._node = node
        self._since = time.monotonic()

    def of(self, *kinds: str) -> list[Json]:
        with self._node.client() as client:
            events = [event["trace"] for event in client.stream("dmesg", follow=False)]
        return [each for each in events if each["kind"] in kinds and each["at"] >= self._since * 1000]

    def rows(self, began: float) -> list[tuple[object, ...]]:
        """The levels, each with what was given back until the next one."""
        rows: list[list[Any]] = []
        for event in self.of("memory.pressure", "memory.parked", "memory.dropped", "memory.refused"):
            if event["kind"] == "memory.pressure":
                rows.append([event["level"], event["at"] / 1000 - began, 0, 0, 0, event["why"]])
            elif event["kind"] == "memory.refused":
                rows[-1][4] += 1
            else:
                rows[-1][2 if event["kind"] == "memory.parked" else 3] += event["bytes"]
        return [(level, f"{at:.1f}", parked >> 20, dropped >> 20, *rest) for level, at, parked, dropped, *rest in rows]


def _print(rows: list[tuple[object, ...]], told: Counter[str], taken: int) -> None:
    print(f"limit {LIMIT >> 20} MiB; {SESSIONS} sessions of each of two models; {CLIENTS} clients talk to one of them")
    table(("level", "s after the hog began", "parked MiB", "dropped MiB", "refused", "why"), rows)


def _outcomes(told: Counter[str]) -> str:
    refused = told[NoMemory.code]
    return f"{told['ok']}; {refused}; {sum(told.values()) - told['ok'] - refused}"


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"benchmarks: pressure: it did not happen in {PATIENCE_S:.0f} s: {what}")
        time.sleep(0.1)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
