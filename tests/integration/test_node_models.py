"""Tests of several models under one budget, on a real node: three quantizations of one model, and memory for two."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from llmasos_edge.errors import Cancelled
from tests.integration.conftest import MakeDevice
from tests.integration.real_node import MODEL, MODELS, ROOT, Device, Json, RealNode, eventually
from tests.quantized import quantized

SMALL, LARGE = "q4_0", "q8_0"
NAMES: Final = (MODEL, SMALL, LARGE)
STORY: Final = "Once upon a time"
SPEC: Final = """\
  memory: {{budget: 590MiB, arena: 32MiB}}
  scheduler: {{model_wait_ms: 1000}}
  mqtt: {{managed: true, port: 0}}
  models: [{models}]
"""
SHAPE: Final = "context: 512, sequences: 4, kv_pool: 1024"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    """A node whose budget holds any two of its three models."""
    node = RealNode(tmp_path_factory.mktemp("node"), pin=False)
    head = node.config.read_text().partition("spec:\n")[0] + "spec:\n"
    node.config.write_text(head + SPEC.format(models=f"{{name: {MODEL}, {SHAPE}}}"))
    try:
        node.start()
        source = next(MODELS.glob("*.Q4_1.gguf"))
        for name in (SMALL, LARGE):
            path = quantized(source, Path(".state/cache/models").absolute(), name.upper())
            node.call("model.add", path=str(path), name=name)
        node.config.write_text(head + SPEC.format(models=", ".join(f"{{name: {it}, {SHAPE}}}" for it in NAMES)))
        assert node.call("reload")["applied"] == ["models"]
        yield node
    finally:
        node.close()


def rows(node: RealNode) -> dict[str, Json]:
    return {row["id"]: row for row in node.call("models")}


def trace(node: RealNode, kind: str) -> list[Json]:
    with node.client() as client:
        return [event["trace"] for event in client.stream("dmesg", follow=False) if event["trace"]["kind"] == kind]


def test_every_task_is_answered_whatever_model_it_wants(node: RealNode, make_device: MakeDevice) -> None:
    """Round robin, all at once, then at random from clients that ask again when they have their answers.

    Each answer is the one that its model gives alone, and comes of the first attempt: no busy model was dropped.
    """
    alone = {name: node.ask(STORY, model=name)["output"]["text"] for name in NAMES}
    assert len(set(alone.values())) > 1, "the quantizations can't be told apart"
    before = len(trace(node, "model.loading"))
    devices = [make_device(node.port, f"client{n}") for n in range(4)]
    for n in range(16):
        devices[n % 4].generate(f"r{n}", STORY, model=NAMES[n % 3])
    replies = {NAMES[n % 3]: devices[n % 4].reply(f"r{n}") for n in range(16)}
    wrong: list[Json] = []
    threads = [
        threading.Thread(target=ask_at_random, args=(device, n, alone, wrong)) for n, device in enumerate(devices)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: reply["output"]["text"] for name, reply in replies.items()} == alone
    assert wrong == []
    tasks = [row["id"] for row in node.call("ps", all=True)]
    assert len(tasks) == 3 + 16 + 16
    assert {node.call("show", task=task)["attempt"] for task in tasks} == {1}
    loads = len(trace(node, "model.loading")) - before
    assert loads <= 16, "every other task made the node load a model"
    assert trace(node, "worker.died") == []
    assert sum(row["state"] == "loaded" for row in rows(node).values()) <= 2


def ask_at_random(device: Device, seed: int, alone: dict[str, str], wrong: list[Json]) -> None:
    chance = random.Random(seed)
    for n in range(4):
        model = chance.choice(NAMES)
        device.generate(f"x{n}", STORY, model=model)
        reply = device.reply(f"x{n}")
        if reply["status"] != "ok" or reply["output"]["text"] != alone[model]:
            wrong.append(reply)


def test_a_pinned_model_stays_while_others_come_and_go(node: RealNode) -> None:
    """Until it is unpinned; `models` tells."""
    assert node.call("model.pin", model=LARGE)["pinned"] is True
    eventually(lambda: rows(node)[LARGE]["state"] == "loaded", "the pinned model is loaded")
    for name in (MODEL, SMALL, MODEL):
        assert node.ask(STORY, model=name)["status"] == "ok"
        assert rows(node)[LARGE]["state"] == "loaded"
    row = rows(node)[LARGE]
    assert (row["pinned"], row["waiting"], row["charged"] > row["size"]) == (True, 0, True)
    assert node.call("model.unpin", model=LARGE) == {"id": LARGE, "state": "loaded", "pinned": False}


def test_a_load_is_told_as_it_goes_and_can_be_given_up(node: RealNode, make_device: MakeDevice) -> None:
    """Events grow to the end of it; over MQTT too; a drop in the midst of it answers both callers."""
    watcher = make_device(node.port, "watcher")
    watcher.listen(f"{ROOT}/event/model.loading")
    for name in NAMES:
        node.call("model.drop", model=name)
    with node.client() as client:
        stream = client.stream("model.load", model=LARGE)
        told = [event["progress"]["fraction"] for event in stream]
        assert stream.result == {"id": LARGE, "state": "loaded"}
    assert told == sorted(told)
    assert told
    eventually(lambda: len(watcher.all(f"{ROOT}/event/model.loading")) > 1, "progress is published")
    node.call("model.drop", model=LARGE)
    with node.client() as client:
        stream = client.stream("model.load", model=LARGE)
        next(stream)
        assert node.call("model.drop", model=LARGE) == {"id": LARGE, "state": "unloaded"}
        with pytest.raises(Cancelled, match=f"{LARGE} was dropped while it was loaded"):
            stream.finish()
    eventually(lambda: "worker" not in node.children(), "its worker is gone")
    assert node.ask(STORY, model=LARGE)["status"] == "ok"
