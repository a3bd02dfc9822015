"""Cores: two models with work at once, through the node, beside workers that nobody coordinates; who waits for whom."""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.machine import describe
from benchmarks.node import MODEL, STATE, BenchNode, model_file
from benchmarks.peer import BATCHED_BENCH, find_peer, run_peer
from benchmarks.report import spread, table, verdict
from benchmarks.rig import Rig
from benchmarks.stream import Stream, node_deltas
from llmasos_edge.errors import LLMasOSError
from llmasos_edge.kernel.hal import Report
from tests.quantized import quantized

TITLE: Final = "two models with work at once: tokens a second together, beside free-running workers; who waits for whom"
OTHER: Final = "other"
GOAL: Final = 1.2  # of two free-running workers
LEAST: Final = 0.25  # of the tokens are the lesser model's: both advance
DENIED_GOAL_MS: Final = 1000
QUANTUM_MS: Final = 200
COUNT: Final = "100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111,"  # the model goes on with it for ever
ALARM: Final = "Smoke in the kitchen, 61 C, nobody at home. The first thing that people must do is"
COUNTING: Final[dict[str, object]] = {"prompt": COUNT, "max_tokens": 4000, "temperature": 0}
READING: Final[dict[str, object]] = {"prompt": "The keeper saw a ship. " * 500, "max_tokens": 8, "temperature": 0}
PROMPT: Final = 48  # tokens of COUNT, nearly
NODE: Final = "the node"
FREE: Final = "two llama-batched-bench, all cores each"
BARE: Final = "two bare workers, all cores each"
TURNS: Final = f"two bare workers, in turns of {QUANTUM_MS} ms, all cores each"
SPLIT: Final = "two bare workers, half of the cores each"
Rates = tuple[float, float]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", type=Path, metavar="PATH", help="a llama-batched-bench that is built already")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved rounds of all ways (5)")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="of each measurement (10)")
    parser.add_argument(
        "--settle", type=float, default=3, metavar="S", help="in which the node tries both ways to share, before (3)"
    )
    parser.add_argument("--tokens", type=int, default=300, help="that each task of llama-batched-bench generates (300)")
    parser.add_argument("--streams", type=int, default=1, metavar="N", help="tasks at once of each model (1)")
    parser.add_argument("--other", default="Q4_0", metavar="KIND", help="quantization of the second model (Q4_0)")
    parser.add_argument("--arrivals", type=int, default=5, metavar="N", help="of each kind, at the second model (5)")


def run(options: argparse.Namespace) -> None:
    peer, first = find_peer(BATCHED_BENCH, options.peer), model_file()
    second = quantized(first, STATE.parent / "cache" / "models", options.other)
    describe("cores")
    print(f"{first.name} and {second.name}, {options.streams} tasks each, {options.seconds:g} s, greedy, KV q8_0")
    found: dict[str, list[Rates]] = {}
    gaps: list[float] = []
    with BenchNode() as node, ExitStack() as stack:
        with node.client() as client:
            client.call("model.add", path=str(second), name=OTHER)
        node.call("model.load", model=OTHER)
        rigs = [stack.enter_context(Rig(path=path)) for path in (first, second)]
        bare = _Bare(rigs, options.streams)
        ways: dict[str, Callable[[], Rates]] = {
            NODE: lambda: _through_node(node, options, gaps),
            FREE: lambda: _peers(peer, (first, second), options),
            BARE: lambda: bare.at_once(options.seconds, rigs[0].threads),
            TURNS: lambda: bare.in_turns(options.seconds),
            SPLIT: lambda: bare.at_once(options.seconds, max(1, rigs[0].threads // 2)),
        }
        for number in range(options.pairs):
            for name in list(ways)[:: -1 if number % 2 else 1]:
                found.setdefault(name, []).append(ways[name]())
                print(f"   round {number + 1}, {name}: {found[name][-1][0]:.1f} + {found[name][-1][1]:.1f}", flush=True)
        rows = [_row(name, found) for name in ways]
        table(("tok/s", first.stem[-4:], OTHER, "together", "of the free-running"), rows)
        _verdicts(found, gaps)
        _arrivals(node, options.arrivals)


def _row(name: str, found: dict[str, list[Rates]]) -> tuple[str, ...]:
    rates = found[name]
    sums, free = [sum(each) for each in rates], [sum(each) for each in found[FREE]]
    ratio = spread([one / other for one, other in zip(sums, free, strict=True)], 2)
    return name, spread([each[0] for each in rates]), spread([each[1] for each in rates]), spread(sums), ratio


def _verdicts(found: dict[str, list[Rates]], gaps: Sequence[float]) -> None:
    ratio = median(sum(ours) / sum(theirs) for ours, theirs in zip(found[NODE], found[FREE], strict=True))
    share = median(min(each) / sum(each) for each in found[NODE])
    print(f"together, of two free-running workers: {ratio:.2f}, {verdict(ratio, GOAL, at_most=False)}")
    print(f"share of the lesser model: {share:.0%}, {verdict(share, LEAST, at_most=False)}")
    print(f"longest time without text of one: {max(gaps):.0f} ms, {verdict(max(gaps), DENIED_GOAL_MS, at_most=True)}")
    split, turns = (median(sum(each) for each in found[name]) for name in (SPLIT, TURNS))
    print(f"splitting / taking turns: {split / turns:.2f}\n", flush=True)


# ---- through the node


def _stream(node: BenchNode, model: str, body: dict[str, object]) -> Stream:
    return Stream(node_deltas(node, body | {"model": model}))


def _through_node(node: BenchNode, options: argparse.Namespace, gaps: list[float]) -> Rates:
    with ExitStack() as stack:
        names = [name for name in (MODEL, OTHER) for _ in range(options.streams)]
        streams = [stack.enter_context(_stream(node, name, COUNTING)) for name in names]
        for each in streams:
            each.first()
        time.sleep(options.settle)
        before, began = _generated(node), time.perf_counter()
        time.sleep(options.seconds)
        after, ended = _generated(node), time.perf_counter()
    for each in streams:
        gaps += each.gaps(began, ended)
    first, second = ((after[name] - before[name]) / (ended - began) for name in (MODEL, OTHER))
    return first, second


def _generated(node: BenchNode) -> dict[str, int]:
    counts = {MODEL: 0, OTHER: 0}
    for task in node.call("ps"):
        counts[task["model"]] += task["generated_tokens"]
    return counts


# ---- without it


def _peers(peer: Path, models: Sequence[Path], options: argparse.Namespace) -> Rates:
    """Both at once, as their own figures have it; who ends later runs alone for a while."""
    threads = str(len(os.sched_getaffinity(0)))
    flags = ("-t", threads, "-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0", "-b", "512", "-ub", "512", "--no-repack")
    lengths = (PROMPT, options.tokens, options.streams)
    with ThreadPoolExecutor(len(models)) as pool:
        first, second = pool.map(lambda model: float(run_peer(peer, model, lengths, flags)["speed_tg"]), models)
    return first, second


class _Bare:
    """Workers without a kernel, each with so many tasks."""

    def __init__(self, rigs: Sequence[Rig], streams: int) -> None:
        self._rigs, self._names = rigs, [f"task{number}" for number in range(streams)]

    def at_once(self, seconds: float, threads: int) -> Rates:
        """An endless lease each."""
        self._begin()
        for rig in self._rigs:
            rig.grant(*self._names, threads=threads)
        with ThreadPoolExecutor(len(self._rigs)) as pool:
            first, second = pool.map(lambda rig: _decoded(rig, seconds), self._rigs)
        self._end()
        return first, second

    def in_turns(self, seconds: float) -> Rates:
        """A lease of a quantum after the other."""
        self._begin()
        counts, began = [0, 0], time.perf_counter()
        while time.perf_counter() - began < seconds:
            for number, rig in enumerate(self._rigs):
                lease, idle = rig.grant(*self._names, ms=QUANTUM_MS), False
                while not idle:
                    report = rig.wait(Report)[1]
                    counts[number] += report.decoded
                    idle = report.idle and report.number == lease
        took = time.perf_counter() - began
        self._end()
        return counts[0] / took, counts[1] / took

    def _begin(self) -> None:
        for rig in self._rigs:
            for sequence, name in enumerate(self._names):
                rig.prepare(name, COUNT)
                rig.switch_in(name, sequence)
            rig.compute(*self._names, decode=1)

    def _end(self) -> None:
        for rig in self._rigs:
            rig.forget(*self._names)
            rig.settle()


def _decoded(rig: Rig, seconds: float) -> float:
    """Tokens a second from the first report on."""
    began, count = rig.wait(Report)[0], 0
    while True:
        moment, report = rig.wait(Report)
        count += report.decoded
        if moment - began >= seconds:
            return count / (moment - began)


# ---- who waits for whom


def _arrivals(node: BenchNode, count: int) -> None:
    """A task for the model that has none, while the other one has all the cores."""
    rows = [("alone", _first_tokens(node, count, "normal", None))]
    for name, body in (("decodes", COUNTING), ("reads 3,000 tokens", READING)):
        rows += [
            (f"{priority}, the other {name}", _first_tokens(node, count, priority, body))
            for priority in ("normal", "critical")
        ]
    print(f"first token of a task of {OTHER} ({count} each), ms")
    table(("", "median (least .. greatest)"), rows)


def _first_tokens(node: BenchNode, count: int, priority: str, beside: dict[str, object] | None) -> str:
    took = []
    for number in range(count):
        with ExitStack() as stack:
            if beside is not None:
                prompt = str(beside["prompt"])
                stack.enter_context(_stream(node, MODEL, beside | {"prompt": f"{number + 1}: {prompt}"}))
                time.sleep(0.5)
            sent = time.perf_counter()
            body = {"prompt": f"{number + 1}: {ALARM}", "max_tokens": 8, "class": priority, "temperature": 0}
            with _stream(node, OTHER, body) as arriving:
                took.append((arriving.first() - sent) * 1000)
            for task in node.call("ps"):  # a prompt that is being read has no text with which to see the hang-up
                with suppress(LLMasOSError):
                    node.call("kill", task=task["id"])
    return spread(took, 0)
