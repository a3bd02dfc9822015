"""Footprint: what the ledger charged for a model before anything was measured, after it, and what it really takes."""

import argparse
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks.machine import describe
from benchmarks.node import STATE, BenchNode, model_file
from benchmarks.report import table, verdict
from tests.quantized import quantized

TITLE: Final = "what models take: predicted, charged and measured, for quantizations, KV types, contexts and sequences"
KINDS: Final = ("Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M", "IQ4_NL")
GOAL: Final = 10  # percent: the error of the first load's charge
MIB: Final = 1 << 20
WAIT_S: Final = 120.0
DRY_RUN_S: Final = 6.0
WORDS: Final = "The sea is deep. " * 150
SPEC: Final = """\
apiVersion: llmasos/v1
kind: Node
metadata: {{name: bench, site: bench}}
spec:
  memory: {{budget: {budget}MiB, arena: 64MiB}}
  mqtt: {{managed: true, port: 0}}
  models: [{models}]
"""
ROOM: Final = 1200  # MiB of budget: for repacked weights as well, where this processor has such a layout
MAPPED: Final = {"Q4_0": 364, "Q4_K_M": 332, "IQ4_NL": 364}  # for no more than mapped ones


class Shape(NamedTuple):
    kind: str
    kv: str
    context: int
    sequences: int
    room: int = 0

    @property
    def name(self) -> str:
        """A model is what was never loaded before: each shape has a name of its own."""
        return re.sub("[^a-z0-9.]", "-", ".".join(map(str, self)).lower())

    @property
    def spec(self) -> str:
        settings = f"name: {self.name}, kv: {self.kv}, context: {self.context}, sequences: {self.sequences}"
        return f"{{{settings}, kv_pool: {self.context}}}"


class Found(NamedTuple):
    """Bytes; `step_ms` of a single token."""

    weights: str
    predicted: int
    whole: int  # with the room for states held aside
    charged: int
    loaded: int
    worked: int
    step_ms: float


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="two shapes of each file, not all")


def run(options: argparse.Namespace) -> None:
    describe("footprint")
    shapes = [Shape("Q4_1", *each) for each in product(("q8_0", "f16"), (1024, 4096, 8192), (1, 16))]
    shapes += [Shape(kind, *each) for kind in KINDS for each in (("q8_0", 4096, 16), ("f16", 8192, 4))]
    if options.quick:
        shapes = [each for each in shapes if each.context == 4096 and each.sequences == 16]
    rows, errors, spare = [], list[float](), list[float]()
    with BenchNode(loaded=False) as node:
        for shape in shapes:
            for found in _tried(node, shape):
                errors.append(100 * (found.predicted / found.worked - 1))
                spare.append(100 * (found.whole / found.worked - 1))
                rows.append(_row(shape, found, errors[-1]))
    head = ("MiB", "weights", "predicted", "and aside", "charged then", "after load", "after work", "error", "a token")
    table(head, rows)
    worst, least = max(map(abs, errors)), min(spare)
    table(
        ("the first load's charge", "percent", "goal"),
        [
            ("greatest error", f"{worst:.1f}", verdict(worst, GOAL, at_most=True)),
            ("least that was left of all that is charged", f"{least:.1f}", verdict(least, 0, at_most=False)),
            ("median", f"{median(errors):.1f}", ""),
        ],
    )


def _row(shape: Shape, found: Found, error: float) -> tuple[str, ...]:
    sizes = (f"{size / MIB:.1f}" for size in (found.predicted, found.whole, found.charged, found.loaded, found.worked))
    name = f"{shape.kind}, {shape.kv}, {shape.context}, {shape.sequences}"
    return (name, found.weights, *sizes, f"{error:+.1f} %", f"{found.step_ms:.1f} ms")


def _tried(node: BenchNode, shape: Shape) -> Iterator[Found]:
    """With room for mapped weights alone, too, where others are possible."""
    file = (
        model_file() if shape.kind == "Q4_1" else quantized(model_file(), STATE.parent / "cache" / "models", shape.kind)
    )
    mapped = (MAPPED[shape.kind],) if shape.kind in MAPPED and shape.context == 4096 else ()
    for room in (*mapped, ROOM):
        model = shape._replace(room=room)
        _add(node, model, file)
        node.config.write_text(SPEC.format(budget=room, models=model.spec))
        node.call("reload")
        yield _loads(node, model)
        node.call("model.rm", model=model.name)


def _add(node: BenchNode, shape: Shape, file: Path) -> None:
    with node.client() as client:
        stream = client.stream("model.add", path=str(file), name=shape.name)
        for _ in stream:
            pass


def _loads(node: BenchNode, shape: Shape) -> Found:
    """Twice: the second time it is charged for what the first has taught."""
    _wait_for_dry_run(node, shape.name)
    node.call("model.load", model=shape.name)
    _wait_for_load(node, shape.name)
    predicted, whole, loaded = _taken(node)
    step_ms = _work(node, shape)
    worked = _taken(node)[2]
    (row,) = (each for each in node.call("models") if each["id"] == shape.name)
    node.call("model.drop", model=shape.name)
    node.call("model.load", model=shape.name)
    _wait_for_load(node, shape.name)
    charged = _taken(node)[0]
    node.call("model.drop", model=shape.name)
    return Found(row["weights"], predicted, whole, charged, loaded, worked, step_ms)


def _wait_for_dry_run(node: BenchNode, name: str) -> None:
    """There is none where the budget has no room for it: then it is the formula that is tried."""
    deadline = time.monotonic() + DRY_RUN_S
    while time.monotonic() < deadline:
        if any(row["id"] == name and row["memory"].get("dry_runs") for row in node.call("models")):
            return
        time.sleep(0.1)


def _wait_for_load(node: BenchNode, name: str) -> None:
    _until(lambda: any(row["id"] == name and row["state"] == "loaded" for row in node.call("models")))


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > deadline:
            sys.exit("benchmarks: the node did not come so far")
        time.sleep(0.1)


def _taken(node: BenchNode) -> tuple[int, int, int]:
    """Charged without the room for states held aside, and with it; and all that is measured."""
    regions = [each for each in node.call("mem")["regions"] if each["kind"] in ("weights", "kv", "compute", "runtime")]
    charged = sum(each["bytes"] for each in regions if not each["name"].endswith(".scratch"))
    return charged, sum(each["bytes"] for each in regions), sum(each.get("measured", 0) for each in regions)


def _work(node: BenchNode, shape: Shape) -> float:
    """A step of 512 tokens, and a row of logits for each sequence. Returns the milliseconds of a single token."""
    node.call("submit", op="generate", body={"model": shape.name, "prompt": WORDS, "max_tokens": 2})
    body = {"model": shape.name, "prompt": "Once upon a time", "max_tokens": 17, "temperature": 0}
    done = node.call("submit", op="generate", body=body)
    threads = [
        threading.Thread(target=node.call, args=("submit",), kwargs={"op": "generate", "body": body})
        for _ in range(shape.sequences)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    timing = done["timing"]
    return float((timing["total_ms"] - timing["first_token_ms"]) / (done["usage"]["completion_tokens"] - 1))
