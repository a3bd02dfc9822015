"""Tests of the budget on a real node, whose bytes are read from the kernel: two models that don't fit together."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.integration.conftest import MakeDevice
from tests.integration.real_node import MODEL, MODELS, Device, Json, RealNode, eventually
from tests.quantized import quantized
from tests.resident import Taken, Watch, taken, together

LARGE: Final = "q8_0"
NAMES: Final = (MODEL, LARGE)
BUDGET_MIB: Final = 300
MIB: Final = 1 << 20
SPEC: Final = """\
  memory: {{budget: {budget}MiB, arena: 8MiB, swap: {{path: {swap}, size: 64MiB}}}}
  scheduler: {{model_wait_ms: 1000}}
  mqtt: {{managed: true, port: 0}}
  models: [{models}]
"""
SHAPE: Final = "context: 512, sequences: 2, kv_pool: 1024"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RealNode]:
    """Its budget holds either of its models, and not both."""
    node = RealNode(tmp_path, pin=False)
    head = node.config.read_text().partition("spec:\n")[0] + "spec:\n"

    def write(*names: str) -> None:
        models = ", ".join(f"{{name: {name}, {SHAPE}}}" for name in names)
        node.config.write_text(head + SPEC.format(budget=BUDGET_MIB, swap=tmp_path / "swap", models=models))

    write(MODEL)
    try:
        node.start()
        file = quantized(next(MODELS.glob("*.Q4_1.gguf")), Path(".state/cache/models").absolute(), "Q8_0")
        node.call("model.add", path=str(file), name=LARGE)
        write(*NAMES)
        node.call("reload")
        yield node
    finally:
        node.close()


def ask(device: Device, wrong: list[Json]) -> None:
    """Each session has three turns, and none of them with the model of the one before."""
    for turn in range(3):
        for model in NAMES:
            said = [{"role": "user", "content": f"Turn {turn}. " + "The sea is deep. " * 20}]
            name = f"{model}-{turn}"
            body = {"id": name, "model": model, "session": model, "messages": said, "max_tokens": 6, "temperature": 0}
            device.send("chat", body)
            reply = device.reply(name)
            wrong += [reply] if reply["status"] != "ok" else []


def test_the_budget_holds_over_every_byte(node: RealNode, make_device: MakeDevice) -> None:
    """While models take turns; no task is lost, no worker dies, and `mem` says of the arena what the kernel says."""
    wrong: list[Json] = []
    threads = [threading.Thread(target=ask, args=(make_device(node.port, f"client{n}"), wrong)) for n in range(2)]
    with Watch(node.pid) as watch:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert watch.samples > 20
    assert watch.most <= BUDGET_MIB * MIB, watch.peak
    with node.client() as client:
        kinds = [event["trace"]["kind"] for event in client.stream("dmesg", follow=False)]
    assert kinds.count("model.dropped") >= 2
    assert "worker.died" not in kinds
    eventually(lambda: node.call("mem")["arena"]["used"] > 0, "a session is parked")
    its = taken(node.pid)
    (arena,) = (each for each in node.call("mem")["regions"] if each["name"] == "arena")
    assert arena["measured"] == its["daemon"].shared


def test_the_watch_sees_what_a_worker_takes(node: RealNode) -> None:
    """Else a peak below the budget would prove nothing: weights, and no less than the KV cells."""
    before = together(iter(taken(node.pid).values()))
    node.ask("Once upon a time", model=MODEL)
    after: Taken = together(iter(taken(node.pid).values()))
    assert after.weights - before.weights > 80 * MIB
    assert after.anonymous - before.anonymous > 20 * MIB
    assert after.kernel > before.kernel
