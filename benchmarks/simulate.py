"""The simulator beside a live node: a mixed load is recorded, replayed with the recorded rates, and compared."""

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.machine import describe
from benchmarks.node import BenchNode
from benchmarks.report import table, verdict
from llmasos_edge.kernel.scheduling.policies import POLICIES
from llmasos_edge.services.workload import Workload, read
from llmasos_edge.simulate.replay import OK, Replay, Replayed

TITLE: Final = "llmasos-simulate beside a live node: mean turnaround by class of one recorded load"
GOAL: Final = 15.0  # percent
CLASSES: Final[Mapping[str, tuple[float, int, int]]] = {  # share of the tasks, words of a prompt, tokens of an answer
    "interactive": (0.4, 40, 40),
    "normal": (0.4, 120, 60),
    "batch": (0.2, 300, 100),
}
CLIENTS: Final = ("kitchen", "garden", "office", "door")
WORDS: Final = (
    *("river", "lamp", "seven", "under", "green", "paper", "window", "slow", "winter", "copper"),
    *("letter", "north", "garden", "quick", "stone", "after", "music", "open", "silver", "boat"),
)
SPREAD: Final = 0.5
CALIBRATION: Final = 24  # tasks at once: how many the machine does in a second
PATIENCE_S: Final = 180.0
SPEC: Final = """\
apiVersion: llmasos/v1
kind: Node
metadata: {{name: bench, site: bench}}
spec:
  memory: {{budget: 1GiB, arena: 128MiB}}
  mqtt: {{managed: true, port: 0}}
  scheduler: {{policy: %s, record: "%s"}}
  models: [{{name: {model}, context: 4096, sequences: %d, kv_pool: 8192, pin: {pin}}}]
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", type=int, default=50, help="that arrive at random moments (50)")
    parser.add_argument("--load", type=float, default=1.0, help="1: all that the machine can do (1.0)")
    parser.add_argument("--sequences", type=int, default=8, help="of the model (8)")
    parser.add_argument(
        "--policy", choices=POLICIES, default="priority", help="of the node and of the replay (priority)"
    )
    parser.add_argument("--rounds", type=int, default=1, help="each with a node, tasks and a replay of its own (1)")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="where the last recording is left")


class Request(NamedTuple):
    client: str
    priority: str
    prompt: str
    tokens: int


def run(options: argparse.Namespace) -> None:
    describe("simulate")
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="llmasos-bench-") as folder:
        calibration = Path(folder) / "calibration"
        a_second = CALIBRATION / _live(options, calibration, [(0.0, each) for each in requests(chance, CALIBRATION)])
        print(
            f"{options.tasks} tasks, {options.load:g} of the {a_second:.2f} tasks a second that a burst gets done; "
            f"policy {options.policy}, {options.sequences} sequences, {len(CLIENTS)} clients, seed {options.seed}",
            flush=True,
        )
        for number in range(options.rounds):
            recording = options.keep or Path(folder) / f"round-{number}"
            took = _live(options, recording, poisson(chance, options.tasks, a_second * options.load))
            workload = read(recording)
            _compare(workload, Replay(workload, options.policy).run(), took)


def requests(chance: random.Random, count: int) -> list[Request]:
    """Prompts of random words: none shares its beginning with another."""
    drawn = chance.choices(list(CLASSES.items()), [share for share, _, _ in CLASSES.values()], k=count)
    found = []
    for priority, (_, words, tokens) in drawn:
        length, most = (max(4, round(median * chance.lognormvariate(0, SPREAD))) for median in (words, tokens))
        prompt = " ".join(chance.choices(WORDS, k=length))
        found.append(Request(chance.choice(CLIENTS), priority, prompt, most))
    return found


def poisson(chance: random.Random, count: int, a_second: float) -> list[tuple[float, Request]]:
    moment, planned = 0.0, []
    for request in requests(chance, count):
        moment += chance.expovariate(a_second)
        planned.append((moment, request))
    return planned


# ---- live


def _live(options: argparse.Namespace, recording: Path, planned: Sequence[tuple[float, Request]]) -> float:
    """Seconds from the first request to the last reply."""
    spec = SPEC % (options.policy, recording, options.sequences)
    with BenchNode(spec=spec) as node, Sender(node.call("status")["broker"]["port"]) as sender:
        began = time.perf_counter()
        for number, (moment, request) in enumerate(planned):
            time.sleep(max(0.0, began + moment - time.perf_counter()))
            sender.send(number, request)
        sender.wait()
        return time.perf_counter() - began


class Sender:
    """A context: several clients' requests over one connection to the node's own broker."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._client = PahoClient(CallbackAPIVersion.VERSION2, client_id="sender")
        self._client.on_message = self._arrived
        self._open = set[str]()
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self._port)
        self._client.subscribe("llmasos/v1/bench/bench/res/+/+", 1)
        self._client.loop_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def send(self, number: int, request: Request) -> None:
        body = {"id": f"r{number}", "prompt": request.prompt, "max_tokens": request.tokens, "class": request.priority}
        with self._changed:
            self._open.add(f"r{number}")
        topic = f"llmasos/v1/bench/bench/req/{request.client}/generate"
        self._client.publish(topic, json.dumps(body | {"temperature": 0}), 0)

    def wait(self) -> None:
        """Until each has its reply."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._open, PATIENCE_S):
                raise TimeoutError(f"{len(self._open)} replies did not come in {PATIENCE_S:.0f} s")

    def _arrived(self, _client: PahoClient, _data: object, message: MQTTMessage) -> None:
        with self._changed:
            self._open.discard(message.topic.rpartition("/")[2])
            self._changed.notify_all()


# ---- beside


def _compare(workload: Workload, replayed: Replayed, took: float) -> None:
    model = workload.header.machine.models[0]
    rates = ", ".join(f"{name} {getattr(model.rates, name):g}" for name in model.rates.__struct_fields__)
    print(f"recorded in {took:.0f} s: {rates}; prepare_ms {model.prepare_ms:g}")
    live, simulated = _live_means(workload), _simulated_means(replayed)
    rows = []
    for name, (count, mean) in live.items():
        guess = simulated[name][1]
        off = (guess / mean - 1) * 100
        rows.append(
            (
                name,
                count,
                f"{mean:.0f}",
                f"{guess:.0f}",
                f"{off:+.1f} %",
                verdict(round(abs(off), 1), GOAL, at_most=True),
            )
        )
    table(("mean turnaround", "tasks", "live ms", "simulated ms", "difference", "goal, %"), rows)


def _live_means(workload: Workload) -> dict[str, tuple[int, float]]:
    return {
        name: _mean(
            [
                each.outcome.turnaround_ms
                for each in workload.arrivals
                if each.outcome and each.outcome.ended == OK and each.priority == name
            ]
        )
        for name in CLASSES
    }


def _simulated_means(replayed: Replayed) -> dict[str, tuple[int, float]]:
    return {
        name: _mean(
            [life.turnaround_ms for life in replayed.lives if life.ended == OK and life.priority.name.lower() == name]
        )
        for name in CLASSES
    }


def _mean(values: Sequence[int]) -> tuple[int, float]:
    return len(values), sum(values) / max(1, len(values)) or 1.0
