"""Several models under one budget: who is dropped for whom, on a simulated trace; real loads, and what others feel."""

import argparse
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Final, Self
from unittest.mock import patch

from benchmarks.machine import describe
from benchmarks.node import MODEL, STATE, BenchNode, model_file
from benchmarks.report import percentile, spread, table
from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.engine.simulation import TARGETS, Simulation
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.memory import residency
from llmasos_edge.kernel.memory.replacement import REPLACEMENTS
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.trace import TraceEvent
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId, Tokens
from tests.quantized import quantized

TITLE: Final = "several models under one budget: replacement and collation on a simulated trace; real load times"
MIB: Final = 1 << 20
# MiB in all, ms to load (from a card of 90 MB/s, and the warm-up), share of the tasks
MODELS: Final = {"a": (60, 1000, 8), "b": (100, 1500, 5), "c": (100, 1500, 3), "d": (200, 2700, 3), "e": (300, 3800, 1)}
BUDGET_MIB: Final = 380
ARENA: Final = Bytes(16 * MIB)
SEED: Final = 4
DELTAS: Final = 12  # of a stream, to speak of the gaps between them
KINDS: Final = ("Q4_0", "Q8_0")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=int, default=600, metavar="S", help="length of the simulated traces (600)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1, 2, 4], metavar="N", help="tasks a second (1 2 4)")
    parser.add_argument("--loads", type=int, default=5, metavar="N", help="real loads of each model (5)")


def run(options: argparse.Namespace) -> None:
    describe("models")
    _simulated(options.seconds, options.rates)
    _real(options.loads)


# ---- simulated


def _simulated(seconds: int, rates: list[float]) -> None:
    shapes = ", ".join(f"{name} {size} MiB {ms} ms {share}" for name, (size, ms, share) in MODELS.items())
    print(f"simulated traces of {seconds} s (Poisson, seed {SEED}), memory for {BUDGET_MIB} MiB of models;")
    print(f"models (size, load time, share of the tasks): {shapes};")
    print("prompts of 20 to 200 tokens, answers of 10 to 80; a step takes 10 ms, a prompt token 1 ms more")
    rows: list[tuple[object, ...]] = []
    for rate in rates:
        for policy in REPLACEMENTS:
            rows.append((f"{rate:g}", policy, "yes", *_measure(policy, TARGETS.model_wait_ms, seconds, rate)))
            with _without_collation():
                rows.append((f"{rate:g}", policy, "no", *_measure(policy, 0, seconds, rate)))
    table(("tasks/s", "policy", "collated", "tasks", "loads", "loading", "waiting: mean", "p95", "worst"), rows)


@contextmanager
def _without_collation() -> Iterator[None]:
    """Whoever waits takes the place of whoever runs, as soon as that has finished what it has begun."""
    with patch.object(residency, "SERVES", 0), patch.object(residency, "LOWER_WAITS", 0):
        yield


def _measure(policy: str, bound: int, seconds: int, rate: float) -> tuple[object, ...]:
    models = {ModelId(name): _model(size, ms) for name, (size, ms, _) in MODELS.items()}
    targets = replace(TARGETS, model_wait_ms=Milliseconds(bound))
    budget = Bytes(BUDGET_MIB * MIB + ARENA)
    simulation = Simulation(models, budget=budget, arena=ARENA, targets=targets, replacement=policy)
    loads: list[str] = []

    def heard(event: TraceEvent) -> None:
        if event.kind == "model.loading" and "progress" not in event.details:
            loads.append(str(event.details["model"]))

    simulation.trace.follow(heard)
    tasks = [_arrive(simulation, *each) for each in _arrivals(seconds, rate)]
    simulation.run()
    waits = [(task.first_run_ms or 0) - task.submitted_ms for task in tasks]
    loading = sum(MODELS[name][1] for name in loads) / 1000
    times = [f"{ms / 1000:.1f} s" for ms in (mean(waits), percentile(waits, 95), max(waits))]
    return len(tasks), len(loads), f"{loading:.0f} s", *times


def _model(size: int, load_ms: int) -> SimulatedModel:
    limits = hal.Limits(Tokens(2048), Tokens(2048), 8, Bytes(16 * MIB // 2048))
    return SimulatedModel(limits, weights=Bytes((size - 16) * MIB), load_ms=load_ms)


def _arrivals(seconds: int, rate: float) -> Iterator[tuple[float, ModelId, SimulatedProgram]]:
    """When, for which model, and what: the same for all."""
    chance, at = random.Random(SEED), 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        name = chance.choices(list(MODELS), [share for *_, share in MODELS.values()])[0]
        yield at * 1000, ModelId(name), SimulatedProgram(chance.randint(20, 200), chance.randint(10, 80))


def _arrive(simulation: Simulation, at: float, model: ModelId, program: SimulatedProgram) -> Task:
    simulation.run(at - simulation.timeline.now)
    return simulation.submit(program, model=model)


# ---- real


class _Watch:
    """A context: inside it, a stream of the default model; when its deltas came."""

    def __init__(self, node: BenchNode) -> None:
        self._node = node
        self._moments: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        self.deltas(0.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._over.is_set():
            self._stream()

    def _stream(self) -> None:
        with self._node.client() as client:
            body = {"prompt": "100, 101, 102, 103,", "max_tokens": 4000, "temperature": 0}
            for event in client.stream("submit", op="generate", body=body):
                if "delta" in event:
                    self._moments.append(time.perf_counter())
                if self._over.is_set():
                    return  # hanging up cancels the task

    def deltas(self, since: float) -> None:
        """Wait for some more of them."""
        while sum(moment >= since for moment in self._moments) < DELTAS:
            time.sleep(0.01)

    def gaps(self, since: float) -> list[float]:
        """Milliseconds between deltas."""
        moments = [moment for moment in self._moments if moment >= since]
        return [(after - before) * 1000 for before, after in pairwise(moments)]


def _real(count: int) -> None:
    """Loads with the file in the page cache and without, while another model streams."""
    source, rows = model_file(), []
    with BenchNode() as node:
        for kind in KINDS:
            path = quantized(source, STATE.parent / "cache" / "models", kind)
            with node.client() as client:
                client.call("model.add", path=str(path), name=kind.lower())
            for cold in (False, True):
                file = _blob(node, path.stat().st_size) if cold else None
                found = [_load(node, kind.lower(), file) for _ in range(count)]
                where = "disk" if cold else "page cache"
                name = f"{kind.lower()}, {path.stat().st_size / 1e6:.0f} MB, from the {where}"
                rows.append((name, *(spread([each[column] for each in found], 0) for column in range(4))))
    print(f"{MODEL} streams while another model is loaded; {count} loads each; ms, median (least .. greatest)")
    table(("model", "load", "longest gap between deltas", "mean gap", "mean gap with no load"), rows)


def _load(node: BenchNode, name: str, cold: Path | None) -> tuple[float, float, float, float]:
    if cold is not None:
        with cold.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with _Watch(node) as watch:
        quiet = time.perf_counter()
        watch.deltas(quiet)
        calm, started = mean(watch.gaps(quiet)), time.perf_counter()
        node.call("model.load", model=name)
        took = (time.perf_counter() - started) * 1000
        watch.deltas(started)
        gaps = watch.gaps(started)
    node.call("model.drop", model=name)
    time.sleep(0.5)  # its worker lets go of the file
    return took, max(gaps), mean(gaps), calm


def _blob(node: BenchNode, size: int) -> Path:
    """The store's file of this size."""
    blobs = Path(node.call("status")["state_dir"]) / "models" / "blobs"
    return next(path for path in blobs.iterdir() if path.stat().st_size == size)
