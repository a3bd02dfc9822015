"""Budget: three models under a budget for two, 60 sessions of several clients, and every byte read from the kernel."""

import argparse
import json
import os
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from benchmarks.limit import Limit, major_faults
from benchmarks.machine import describe
from benchmarks.node import MODEL, STATE, BenchNode, model_file
from benchmarks.report import percentile, table, verdict
from llmasos_edge.errors import LLMasOSError
from tests.integration.real_node import Device
from tests.quantized import quantized
from tests.resident import Taken, Watch, taken, together

TITLE: Final = "three models under a budget for two: tasks lost, loads, and the peak of all memory read from the kernel"
MIB: Final = 1 << 20
KINDS: Final = {MODEL: "Q4_1", "q4_0": "Q4_0", "q8_0": "Q8_0"}
NAMES: Final = tuple(KINDS)
SESSIONS: Final = 60
CLIENTS: Final = 6
ANSWER: Final = 12
SEED: Final = 4
EVERY_S: Final = 0.1
LOOK_S: Final = 1.0  # between two looks at `mem`
PATIENCE_S: Final = 240.0
READ_AHEAD: Final = 128 * 1024  # what a fault on a file reads at once
SPEC: Final = """\
apiVersion: llmasos/v1
kind: Node
metadata: {{name: kitchen, site: home}}
spec:
  memory: {{budget: %dMiB, arena: 32MiB, swap: {{path: "{state}/swap", size: 512MiB}}}}
  mqtt: {{managed: true, port: 0}}
  models: [%s]
"""
SHAPE: Final = "{{name: %s, context: 1024, sequences: 4}}"
WORDS: Final = ("harbour", "lamp", "winter", "signal", "engine", "copper", "river", "window", "ladder")
Json = dict[str, Any]


class Ask(NamedTuple):
    session: int
    text: str

    @property
    def model(self) -> str:
        return NAMES[self.session % len(NAMES)]

    @property
    def client(self) -> int:
        return self.session // len(NAMES) % CLIENTS


class Outcome(NamedTuple):
    """Of the tasks of one order. `regions`: by its name, pairs of what `mem` and the kernel say."""

    order: str
    replies: list[Json]
    seconds: float
    watch: Watch
    trace: list[Json]
    regions: dict[str, list[tuple[int, int]]]
    faults: int


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", type=int, default=200, metavar="N", help="half of them in each order (200)")
    parser.add_argument("--budget", type=int, default=480, metavar="MIB", help="of the node (480)")


def run(options: argparse.Namespace) -> None:
    describe("budget")
    size = options.budget * MIB
    print(f"{options.tasks} tasks, half in each order, {SESSIONS} sessions, {CLIENTS} clients over MQTT, seed {SEED};")
    print(f"budget {options.budget} MiB; read every {EVERY_S * 1000:.0f} ms: tests/resident.py says what is counted")
    outcomes = []
    with BenchNode(loaded=False, spec=_spec(options.budget, MODEL)) as node:
        _add_models(node, options.budget)
        trace = _follow(node)
        _print_charges(node, size)
        outcomes += [_drive(node, order, asks, trace) for order, asks in _orders(options.tasks // 2)]
    _print_outcomes("no limit", outcomes, size)
    _print_peak(max(outcomes, key=lambda it: it.watch.most), size)
    _print_regions(outcomes)
    outcomes = []
    with ExitStack() as stack:
        limit = stack.enter_context(Limit(size))
        spec = _spec(options.budget, MODEL)
        node = stack.enter_context(BenchNode(loaded=False, spec=spec, wrapper=limit.wrapper))
        limit.release(node.process.pid, "mosquitto")
        _add_models(node, options.budget)
        _drop_page_cache(node)
        trace = _follow(node)
        outcomes += [_drive(node, order, asks, trace) for order, asks in _orders(options.tasks // 2)]
        kills, most, most_kernel = limit.kills, limit.most, limit.most_kernel
    _print_outcomes(f"limit of {options.budget} MiB", outcomes, size)
    _print_limit(outcomes, kills, most, most_kernel)


def _spec(budget: int, *names: str) -> str:
    return SPEC % (budget, ", ".join(SHAPE % name for name in names))


def _files() -> dict[str, Path]:
    folder = STATE.parent / "cache" / "models"
    return {name: model_file() if name == MODEL else quantized(model_file(), folder, KINDS[name]) for name in NAMES}


def _add_models(node: BenchNode, budget: int) -> None:
    for name, path in _files().items():
        if name != MODEL:
            node.call("model.add", path=str(path), name=name)
    node.config.write_text(_spec(budget, *NAMES).format(state=node.config.parent))
    node.call("reload")


def _drop_page_cache(node: BenchNode) -> None:
    """So that pages of the models are charged to whoever reads them next, not to this program."""
    for path in node.config.parent.glob("state/models/blobs/*.gguf"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ---- the work


def _orders(count: int) -> Iterator[tuple[str, list[Ask]]]:
    chance = random.Random(SEED)
    yield "round robin", [Ask(n % SESSIONS, _text(chance)) for n in range(count)]
    yield "at random", [Ask(chance.randrange(SESSIONS), _text(chance)) for _ in range(count)]


def _text(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(30, 90)))


def _drive(node: BenchNode, order: str, asks: Sequence[Ask], trace: list[Json]) -> Outcome:
    """Each client asks one thing after another."""
    replies: list[Json] = []
    regions: dict[str, list[tuple[int, int]]] = defaultdict(list)
    port, name = int(node.call("status")["broker"]["port"]), order.replace(" ", "-")
    devices = [Device(port, f"{name}-{number}") for number in range(CLIENTS)]
    faults, told, began = major_faults(node.process.pid), len(trace), time.monotonic()
    with Watch(node.process.pid, EVERY_S) as watch:
        threads = [
            threading.Thread(target=_ask_all, args=(device, [it for it in asks if it.client == number], replies))
            for number, device in enumerate(devices)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(LOOK_S)
            _compare(node, regions)
    seconds, faults = time.monotonic() - began, major_faults(node.process.pid) - faults
    for device in devices:
        device.close()
    return Outcome(order, replies, seconds, watch, trace[told:], regions, faults)


def _ask_all(device: Device, asks: Sequence[Ask], replies: list[Json]) -> None:
    for number, ask in enumerate(asks):
        body = {"model": ask.model, "session": f"s{ask.session}", "max_tokens": ANSWER, "temperature": 0}
        said = [{"role": "user", "content": ask.text}]
        device.send("chat", body | {"id": f"r{number}", "messages": said})
        replies.append(device.reply(f"r{number}", PATIENCE_S) | {"asked": ask.model})


def _follow(node: BenchNode) -> list[Json]:
    """All that `dmesg` tells until the node is gone."""
    trace: list[Json] = []

    def run() -> None:
        with suppress(LLMasOSError), node.client() as client:
            trace.extend(event["trace"] for event in client.stream("dmesg", follow=True))

    threading.Thread(target=run, daemon=True).start()
    return trace


def _compare(node: BenchNode, regions: dict[str, list[tuple[int, int]]]) -> None:
    """What `mem` says beside what the kernel says, where that is the same before and after."""
    before, told, after = taken(node.process.pid), node.call("mem")["regions"], taken(node.process.pid)
    said: dict[str, int] = defaultdict(int)
    for each in told:
        said[_place(each["name"])] += each.get("measured", 0)
    names = {_digest(node, name): name for name in NAMES}
    for digest, its in after.items():
        name = names.get(digest, digest)
        if name in ("daemon", *NAMES) and _steady(before.get(digest), its):
            regions[name].append((said[name], its.anonymous + its.kernel))
            if name == "daemon":
                regions["arena"].append((said["arena"], its.shared))
            else:
                regions[f"{name}.weights"].append((said[f"{name}.weights"], its.weights))


def _place(region: str) -> str:
    """All of a worker's regions that are its own memory are one to the kernel."""
    return region if "." not in region or region.endswith(".weights") else region.rpartition(".")[0]


def _steady(before: Taken | None, after: Taken) -> bool:
    return before is not None and abs(before.total - after.total) * 200 < after.total


def _digest(node: BenchNode, model: str) -> str:
    manifest = json.loads((node.config.parent / "state" / "models" / f"{model}.json").read_text())
    return str(manifest["sha256"])


# ---- what came of it


def _print_charges(node: BenchNode, budget: int) -> None:
    """Each model loaded alone, with its first pool: any two fit beside the daemon and the arena, all three do not."""
    charged = {}
    for name in NAMES:
        node.call("model.load", model=name)
        _until_loaded(node, name)
        mem = node.call("mem")
        charged[name] = sum(each["bytes"] for each in mem["regions"] if each["name"].startswith(f"{name}."))
        fixed = sum(each["bytes"] for each in mem["regions"] if each["kind"] in ("daemon", "arena"))
        node.call("model.drop", model=name)
    rows = [(name, f"{size / MIB:.1f}") for name, size in charged.items()]
    rows.append(("daemon and arena", f"{fixed / MIB:.1f}"))
    two, three = fixed + sum(sorted(charged.values())[1:]), fixed + sum(charged.values())
    rows += [("with the two largest", f"{two / MIB:.1f}"), ("with all three", f"{three / MIB:.1f}")]
    table(("first charge", "MiB"), [*rows, ("budget", f"{budget / MIB:.1f}")])


def _until_loaded(node: BenchNode, name: str) -> None:
    while not any(row["id"] == name and row["state"] == "loaded" for row in node.call("models")):
        time.sleep(0.05)


def _print_outcomes(title: str, outcomes: Sequence[Outcome], budget: int) -> None:
    rows = []
    for it in outcomes:
        lost = sum(reply["status"] != "ok" for reply in it.replies)
        kinds = Counter(event["kind"] for event in it.trace)
        loads, peak = sum(1 for event in it.trace if _is_load(event)), it.watch.most / MIB
        waits = [reply["timing"]["total_ms"] for reply in it.replies if reply["status"] == "ok"]
        events = (loads, kinds["pool.resized"], kinds["task.preempted"], kinds["worker.died"])
        times = (f"{it.seconds:.0f} s", f"{median(waits) / 1000:.1f}", f"{percentile(waits, 95) / 1000:.1f}")
        held = (f"{peak:.1f}", verdict(peak, budget / MIB, at_most=True), it.watch.samples)
        rows.append((it.order, len(it.replies), lost, _busy_drops(it.trace), *events, *times, *held))
    heads = ("tasks", "lost", "busy dropped", "loads", "resized", "preempted", "died", "took", "s: median", "p95")
    table((title, *heads, "peak MiB", "budget", "samples"), rows)


def _is_load(event: Json) -> bool:
    return bool(event["kind"] == "model.loading" and "progress" not in event)


def _busy_drops(trace: Sequence[Json]) -> int:
    """Models that were dropped while a task had a sequence in them."""
    seated: dict[str, str] = {}
    drops = 0
    for event in trace:
        if event["kind"] == "task.seated":
            seated[event["task"]] = event["model"]
        elif event["kind"] in ("task.ended", "task.preempted"):
            seated.pop(event["task"], None)
        elif event["kind"] == "model.dropped":
            drops += event["model"] in seated.values()
    return drops


def _print_peak(outcome: Outcome, budget: int) -> None:
    """Where the bytes were at the worst moment."""
    peak = outcome.watch.peak
    whole = together(iter(peak.values()))
    rows = [(name[:8], *_mib(its)) for name, its in peak.items()]
    rows += [("together", *_mib(whole)), ("of the budget", *[""] * 4, f"{100 * whole.total / budget:.1f} %")]
    head = (f"peak ({outcome.order}), MiB", "anonymous", "arena", "weights", "tables, stacks", "together")
    table(head, rows)


def _mib(its: Taken) -> tuple[str, ...]:
    return tuple(f"{size / MIB:.1f}" for size in (*its, its.total))


def _print_regions(outcomes: Sequence[Outcome]) -> None:
    rows = []
    for name in sorted({name for it in outcomes for name in it.regions}):
        pairs = [pair for it in outcomes for pair in it.regions[name]]
        off = [100 * (said / read - 1) for said, read in pairs if read > MIB]
        said, read = pairs[-1]
        worst = f"{min(off):+.1f} .. {max(off):+.1f} %" if off else ""
        rows.append((name, len(pairs), f"{said / MIB:.1f}", f"{read / MIB:.1f}", worst))
    table(("region (a model's name: all but weights)", "looks", "`mem`, the last", "the kernel", "off by"), rows)


def _print_limit(outcomes: Sequence[Outcome], kills: int, most: int, most_kernel: int) -> None:
    rows: list[tuple[object, ...]] = [("killed by the kernel for the limit", kills, verdict(kills, 0, at_most=True))]
    for it in outcomes:
        rate, size = it.faults / len(it.replies), max(path.stat().st_size for path in _files().values())
        bound = size // READ_AHEAD
        rows.append((f"major faults a task, {it.order}", f"{rate:.1f}", verdict(rate, bound, at_most=True)))
    rows.append(("most that the group held, page cache included, MiB", f"{most / MIB:.1f}", ""))
    rows.append(("of it the kernel's, slabs included, MiB", f"{most_kernel / MIB:.1f}", ""))
    table(("under the limit", "measured", "goal"), rows)
    print("bound: what one token costs whose weights must all be read again, 128 KiB a fault")
