"""Tests of `llmasos reload` on a real node: a changed node file counts while tasks run, a broken one does nothing."""

import re

import pytest

from llmasos_edge.errors import ConfigError
from tests.integration.conftest import MakeDevice, MakeNode
from tests.integration.real_node import MODEL, ROOT, Json, RealNode, eventually

STORY = "Once upon a time"


def change(node: RealNode, *changes: tuple[str, str]) -> None:
    """Change the node file."""
    text = node.config.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    node.config.write_text(text)


def row(node: RealNode) -> Json:
    """The model's, of `models`."""
    rows: list[Json] = node.call("models")
    return next(each for each in rows if each["id"] == MODEL)


def test_a_running_task_survives(make_node: MakeNode, make_device: MakeDevice) -> None:
    """It ends as it would have; meanwhile the rest of the file counts, and then the model has its new settings."""
    node = make_node(apps="summarize").start()
    calm = node.ask(STORY, max_tokens=100)["output"]["text"]
    phone = make_device(node.port, "phone")
    phone.listen(f"{ROOT}/event/#")
    worker = node.children()["worker"]
    phone.generate("long", STORY, max_tokens=100, stream=True)
    phone.next(f"{ROOT}/res/phone/long/stream")
    change(
        node,
        ("sequences: 8, kv_pool: 2048", "sequences: 4, kv_pool: 1024"),
        ("apps: [summarize]", "apps: [translate]\n  scheduler: {policy: fcfs}"),
        ("budget: 1GiB, arena: 32MiB", "budget: 900MiB, arena: 48MiB, replacement: lru"),
        ("name: lamp, ceiling: normal", "name: phone, ceiling: batch"),
        ("site: home", "site: work"),
    )
    outcome = node.call("reload")
    assert outcome == {
        "applied": ["memory.budget", "memory.replacement", "scheduler", "models", "apps", "clients"],
        "waiting": [MODEL],
        "restart": ["metadata.site", "memory.arena"],
    }
    assert node.tasks(state="RUNNING")
    assert node.children()["worker"] == worker
    assert phone.reply("long")["output"]["text"] == calm
    assert phone.next(f"{ROOT}/event/config.applied")["restart"] == outcome["restart"]
    eventually(lambda: row(node)["state"] == "loaded" and row(node)["sequences"] == 4, "the model has its new settings")
    status = node.status()
    assert status["pending"] == {"waiting": [], "restart": ["metadata.site", "memory.arena"]}
    assert (status["site"], status["apps"], node.call("mem")["budget"]) == ("home", ["translate"], 900 << 20)
    phone.generate("after", STORY)
    assert phone.reply("after")["class"] == "batch"


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (("budget: 1GiB", "bugdet: 1GiB"), r'node\.yaml:\d+.*did you mean "budget"'),
        (("apps: []", "apps: [nonsense]"), "nonsense"),
        (("budget: 1GiB", "budget: 120MiB"), r"memory\.budget: 120 MiB is less than the \d+ MiB that are taken now"),
        (("context: 512, sequences: 8, kv_pool: 2048", "context: 90000, kv_pool: 90000"), "memory.budget leaves"),
    ],
    ids=["key", "app", "budget", "room"],
)
def test_a_wrong_file_changes_nothing(node: RealNode, mistake: tuple[str, str], words: str) -> None:
    """It is refused in words that tell the file and line, or the key; what the same file has right is not applied."""
    text, before = node.config.read_text(), node.call("config.show")
    change(node, mistake, ("name: lamp, ceiling: normal", "name: lamp, ceiling: batch"))
    try:
        with pytest.raises(ConfigError) as refusal:
            node.call("reload")
        assert re.search(words, refusal.value.message), refusal.value.message
        assert node.call("config.show") == before
        assert node.status()["pending"] == {"waiting": [], "restart": []}
        node.call("model.drop", model=MODEL)
        node.call("model.load", model=MODEL)
        eventually(lambda: row(node)["state"] == "loaded", "the model is loaded again")
        assert row(node)["cells"] == 2048
    finally:
        node.config.write_text(text)
    assert node.call("reload")["applied"] == []


def test_a_model_comes_and_goes(make_node: MakeNode) -> None:
    """One that is added is there at once; one that is removed gives its memory back when it is idle."""
    node = make_node(pin=False).start()
    assert node.ask(STORY)["status"] == "ok"
    node.call("model.add", path=str(next((node.state / "models/blobs").iterdir())), name="second")
    line = next(line for line in node.config.read_text().splitlines() if f"name: {MODEL}" in line)
    change(node, (line, "    - {name: second, context: 256, sequences: 2, kv_pool: 512, pin: true}"))
    assert node.call("reload")["applied"] == ["models"]
    eventually(lambda: node.status()["models"] == [{"id": "second", "state": "loaded"}], "the new model is loaded")
    assert row(node)["state"] == "unloaded"
    assert node.ask(STORY)["status"] == "ok"
    assert node.call("ps", all=True)[-1]["model"] == "second"
