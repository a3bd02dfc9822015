"""Promises, on a live node: no class starves, clients are served alike, and deadlines that were accepted are kept."""

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any, Final

from benchmarks.clients import Clients, Request
from benchmarks.machine import describe
from benchmarks.node import BenchNode
from benchmarks.report import spread, table, verdict

TITLE: Final = "what the policies promise, on a live node: starvation, fairness between clients, deadlines"
LOOK_S: Final = 0.1
WINDOW_S: Final = 10.0
QUANTUM_MS: Final = 200
SPEC: Final = """\
apiVersion: llmasos/v1
kind: Node
metadata: {{{{name: bench, site: bench}}}}
spec:
  memory: {{{{budget: 1GiB, arena: 64MiB}}}}
  scheduler: {{{{policy: {policy}, quantum_ms: {quantum}}}}}
  mqtt: {{{{managed: true, port: 0}}}}
  models: [{{{{name: {{model}}, context: 4096, sequences: {sequences}, pin: {{pin}}}}}}]
"""
PARTS: Final = ("starvation", "fairness", "guest", "deadlines")
Row = tuple[str, str, str]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which of them (all)")
    parser.add_argument("--sequences", type=int, default=4, metavar="N", help="of the model (4)")
    parser.add_argument("--seconds", type=float, default=120, metavar="S", help="of the interactive load (120)")
    parser.add_argument("--tasks", type=int, default=200, metavar="N", help="of the client with many (200)")
    parser.add_argument("--tokens", type=int, default=60, help="that a task generates (60)")
    parser.add_argument("--deadlines", type=int, default=200, metavar="N", help="tasks with a deadline (200)")


def run(options: argparse.Namespace) -> None:
    describe("live-promises")
    print(f"{options.sequences} sequences, counts of {options.tokens} tokens, greedy, QoS 0", flush=True)
    parts = {"starvation": _starvation, "fairness": _fairness, "guest": _guest, "deadlines": _deadlines}
    rows: list[Row] = []
    for name in options.parts:
        with _node("deadline" if name == "deadlines" else "priority", options.sequences) as (node, clients):
            found = list(parts[name](node, clients, options))
        rows += found
        for row in found:
            print(f"   {row[0]}: {row[1]}", flush=True)
    print()
    table(("promise", "found", "goal"), rows)


@contextmanager
def _node(policy: str, sequences: int) -> Iterator[tuple[BenchNode, Clients]]:
    spec = SPEC.format(policy=policy, quantum=QUANTUM_MS, sequences=sequences)
    with BenchNode(spec=spec) as node, Clients(node.call("status")["broker"]["port"]) as clients:
        yield node, clients


# ---- starvation


def _starvation(node: BenchNode, clients: Clients, options: argparse.Namespace) -> Iterator[Row]:
    """Interactive tasks that always wait, twice as many as sequences, beside as many batch tasks that never end."""
    for _ in range(2 * options.sequences):
        clients.send("people", options.tokens, "interactive")
    for _ in range(options.sequences):
        clients.send("archive", 3000, "batch")
    began, looks, with_batch = time.perf_counter(), 0, 0
    told = dict[str, int]()
    moments: defaultdict[str, list[float]] = defaultdict(list)
    while time.perf_counter() - began < options.seconds:
        while (request := clients.ended(LOOK_S)) is not None:
            if request.client == "people":
                clients.send("people", options.tokens, "interactive")
        tasks = [task for task in node.call("ps") if task["client"] == "archive"]
        looks, with_batch = looks + 1, with_batch + any(task["state"] == "RUNNING" for task in tasks)
        for task in tasks:
            if task["state"] == "RUNNING" or task["generated_tokens"] > told.get(task["id"], -1):
                told[task["id"]] = task["generated_tokens"]
                moments[task["id"]].append(time.perf_counter())
    share = with_batch / looks
    over = time.perf_counter()
    pauses = [
        max(later - sooner for sooner, later in pairwise((began, *told_at, over))) for told_at in moments.values()
    ]
    yield "share of the looks at which batch work ran", f"{share:.1%} of {looks}", verdict(share, 0.05, at_most=False)
    yield "longest pause of a batch task, s", spread(pauses), verdict(max(pauses), 60, at_most=True)


# ---- fairness


def _fairness(node: BenchNode, clients: Clients, options: argparse.Namespace) -> Iterator[Row]:
    """Two clients, one with a tenth of the other's tasks: tokens in each window in which both have some that wait."""
    many, few = options.tasks, max(1, options.tasks // 10)
    sent = [clients.send("many", options.tokens) for _ in range(many)]
    sent += [clients.send("few", options.tokens) for _ in range(few)]
    began, looks = time.perf_counter(), list[tuple[float, int, int]]()
    while True:
        waiting = {"many": 0, "few": 0}
        counts = {"many": 0, "few": 0}
        for request in sent:
            counts[request.client] += request.generated
        for task in node.call("ps"):
            waiting[task["client"]] += task["state"] == "READY"
            counts[task["client"]] += task["generated_tokens"]
        if looks and not all(waiting.values()):
            break
        looks.append((time.perf_counter() - began, counts["many"], counts["few"]))
        clients.ended(LOOK_S)
    ratios = [
        _unevenness(one, other) for one in looks for other in looks if WINDOW_S <= other[0] - one[0] < WINDOW_S + 1
    ]
    if not ratios:
        yield "service in 10 s, greater / smaller", f"no window: both waited for {looks[-1][0]:.0f} s", "more --tokens"
        return
    yield "service in 10 s, greater / smaller", spread(ratios, 2), verdict(max(ratios), 2, at_most=True)


def _unevenness(before: tuple[float, int, int], after: tuple[float, int, int]) -> float:
    one, other = after[1] - before[1], after[2] - before[2]
    return max(one, other) / max(1, min(one, other))


def _guest(_node: BenchNode, clients: Clients, options: argparse.Namespace) -> Iterator[Row]:
    """A client with one task at a time: alone, and beside one with many."""
    alone = [_turnaround(clients, options.tokens) for _ in range(3)]
    for _ in range(options.tasks):
        clients.send("many", options.tokens)
    time.sleep(2)
    beside = [_turnaround(clients, options.tokens) for _ in range(3)]
    ratio = median(beside) / median(alone)
    found = f"{ratio:.2f}: {spread(beside)} s, alone {spread(alone)} s"
    yield "turnaround of one task beside many / alone", found, verdict(ratio, 2, at_most=True)


def _turnaround(clients: Clients, tokens: int) -> float:
    request = clients.send("guest", tokens)
    while (ended := clients.ended()) is not request:
        if ended is None:
            raise TimeoutError("the guest has no reply")
    return request.turnaround


# ---- deadlines


def _deadlines(node: BenchNode, clients: Clients, options: argparse.Namespace) -> Iterator[Row]:
    """At 80 % of what a full node does, which is measured before: Poisson, lengths and deadlines drawn."""
    draw, sizes = random.Random(1), [options.tokens // 2, options.tokens, 2 * options.tokens]
    began, warm = time.perf_counter(), 8 * options.sequences
    for number in range(warm):
        clients.send("warm", sizes[number % 3])
    tokens = sum(request.generated for request in clients.all_ended(warm))
    rate = tokens / (time.perf_counter() - began)
    sent = []
    for _ in range(options.deadlines):
        time.sleep(draw.expovariate(0.8 * rate / (sum(sizes) / len(sizes))))
        size = draw.choice(sizes)
        alone_ms = size * 1000 * options.sequences / rate + 300
        sent.append(clients.send("dated", size, deadline_ms=int(alone_ms * draw.uniform(1.2, 6))))
    list(clients.all_ended(len(sent)))
    refused = [each for each in sent if _refused(each)]
    admitted = [each for each in sent if each not in refused]
    missed = [each for each in admitted if each.reply["status"] != "ok"]
    share = len(missed) / max(1, len(admitted))
    yield "admitted", f"{len(admitted)} of {len(sent)}, at {rate:.0f} tokens/s", ""
    yield "of those missed", f"{share:.1%} ({len(missed)})", verdict(share, 0.01, at_most=True)
    if missed:
        late = _late_ms(node, sent, missed, rate / options.sequences)
        yield "by so much, ms", spread(late, 0), verdict(max(late), QUANTUM_MS, at_most=True)


def _refused(request: Request) -> bool:
    """At once, and not at its deadline."""
    error: dict[str, Any] = request.reply.get("error", {})
    return "expected_ms" in error.get("details", {})


def _late_ms(node: BenchNode, sent: list[Request], missed: list[Request], rate: float) -> list[float]:
    """How long each would have taken yet, at tokens a second: at its deadline a task is ended. The node numbers tasks
    in the order in which they were sent.
    """
    rows = [task for task in node.call("ps", all=True) if task["client"] == "dated"]
    rows.sort(key=lambda task: [int(part) for part in task["id"].split("-")])
    generated = {id(request): task["generated_tokens"] for request, task in zip(sent, rows, strict=True)}
    return [(request.tokens - generated[id(request)]) / rate * 1000 for request in missed]
