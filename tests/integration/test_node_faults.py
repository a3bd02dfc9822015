"""Tests of a real node whose workers die, hang, or have files that are no models: who is to blame fails, alone."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from llmasos_edge.errors import EngineFailed, LLMasOSError, StoreError, UnknownTask
from llmasos_edge.services.store import ModelStore
from tests.engine.test_gguf import gguf
from tests.integration.conftest import MakeNode
from tests.integration.real_node import MODEL, ROOT, Device, RealNode, eventually

STORY = "Once upon a time"


def test_a_killed_worker_is_replaced_and_its_tasks_run_again_one_at_a_time(node: RealNode, phone: Device) -> None:
    """SIGKILL in mid-answer: all end ok, with the same text; a stream starts anew at seq 0; never two at once."""
    calm = node.ask(STORY, max_tokens=24)["output"]["text"]
    for number in range(4):
        phone.generate(f"k{number}", STORY, max_tokens=24, stream=True)
    phone.next(f"{ROOT}/res/{phone.name}/k3/stream")
    os.kill(node.children()["worker"], signal.SIGKILL)
    eventually(lambda: not node.tasks(state="RUNNING"), "the death is noticed", 5)
    at_once = 0
    while node.tasks():
        at_once = max(at_once, len(node.tasks(state="RUNNING")))
    replies = [phone.reply(f"k{number}") for number in range(4)]
    assert [reply["output"]["text"] for reply in replies] == [calm] * 4
    assert at_once == 1
    for number in range(4):
        *deltas, done = phone.all(f"{ROOT}/res/{phone.name}/k{number}/stream")
        again = [delta for delta in deltas if delta["attempt"] == max(each["attempt"] for each in deltas)]
        assert [delta["seq"] for delta in again] == list(range(len(again)))
        assert "".join(delta["delta"] for delta in again) == calm
        assert done == {"seq": len(again), "done": True}


def test_a_request_that_always_kills_its_worker_ends_alone(node: RealNode, phone: Device) -> None:
    """An assassin ends the worker whenever that task runs: it alone fails; its batch mates are answered."""
    over = threading.Event()
    phone.generate("poison", STORY, max_tokens=60)
    task = phone.next(f"{ROOT}/res/{phone.name}/poison/accepted")["task"]

    def assassin() -> None:
        with node.client() as client:
            while not over.wait(0.01):
                if client.call("show", task=task)["state"] == "RUNNING":
                    worker = node.children().get("worker")
                    if worker is not None:
                        os.kill(worker, signal.SIGKILL)
                        over.wait(0.2)

    mates = [f"mate{number}" for number in range(3)]
    for mate in mates:
        phone.generate(mate, STORY, max_tokens=12)
        phone.next(f"{ROOT}/res/{phone.name}/{mate}/accepted")
    killer = threading.Thread(target=assassin)
    killer.start()
    try:
        reply = phone.reply("poison")
        assert reply["error"]["code"] == "engine_failed"
        assert "SIGKILL" in reply["error"]["message"]
        assert [phone.reply(mate)["status"] for mate in mates] == ["ok"] * 3
    finally:
        over.set()
        killer.join()
    assert node.ask(STORY)["status"] == "ok"


def test_a_worker_that_hangs_is_found_out_and_replaced(node: RealNode, phone: Device) -> None:
    """SIGSTOP in mid-answer: it counts as dead after a while, and the answer comes all the same."""
    phone.generate("h1", STORY, max_tokens=40, stream=True)
    phone.next(f"{ROOT}/res/{phone.name}/h1/stream")
    worker = node.children()["worker"]
    os.kill(worker, signal.SIGSTOP)
    assert phone.reply("h1")["status"] == "ok"
    assert node.children()["worker"] != worker
    with node.client() as client:
        assert "worker.hung" in [event["trace"]["kind"] for event in client.stream("dmesg")]


def test_a_pinned_model_whose_idle_worker_dies_is_there_again(node: RealNode) -> None:
    """Pinned means loaded: nobody has to ask first."""
    before = node.children()["worker"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: node.children().get("worker", before) != before, "another worker is there", 10)
    eventually(lambda: node.status()["models"][0]["state"] == "loaded", "the model is loaded", 30)


def replace(path: Path, content: bytes) -> None:
    """Another file in its place: the old one may be shared."""
    part = path.with_suffix(".new")
    part.write_bytes(content)
    part.rename(path)


@pytest.fixture
def idle_node(make_node: MakeNode) -> RealNode:
    """A node whose model is not loaded yet."""
    return make_node(pin=False).start()


def blob(node: RealNode) -> Path:
    stored = ModelStore(node.state / "models", None).find(MODEL)
    assert stored is not None
    return stored.path


def test_files_that_are_no_models_fail_their_requests_and_not_the_node(idle_node: RealNode) -> None:
    """Truncated, random, and headers that promise what is not there: `engine_failed`, whatever the worker does."""
    whole = blob(idle_node).read_bytes()
    noise = os.urandom(1 << 20)
    for content in (whole[: len(whole) // 2], whole[:5_000_000], noise, b"GGUF" + noise, b"", whole[:1000] + noise):
        replace(blob(idle_node), content)
        with pytest.raises(EngineFailed, match=MODEL):
            idle_node.ask(STORY)
    replace(blob(idle_node), whole[:5_000_000] + os.urandom(len(whole) - 5_000_000))
    with pytest.raises((EngineFailed, StoreError)):
        idle_node.call("model.verify", model=MODEL)
    replace(blob(idle_node), whole)
    assert idle_node.ask(STORY)["status"] == "ok"


def test_weights_of_noise_end_in_an_error_or_in_nonsense(idle_node: RealNode) -> None:
    """A whole header with random tensors: NaN everywhere, and yet the daemon lives and the next model works."""
    whole = blob(idle_node).read_bytes()
    replace(blob(idle_node), whole[:5_000_000] + os.urandom(len(whole) - 5_000_000))
    with suppress(EngineFailed):
        assert idle_node.ask(STORY)["status"] == "ok"
    assert idle_node.process is not None
    assert idle_node.process.poll() is None
    eventually(lambda: not idle_node.tasks(), "nothing runs")
    idle_node.call("model.drop", model=MODEL)
    replace(blob(idle_node), whole)
    assert idle_node.ask(STORY)["status"] == "ok"


@pytest.mark.parametrize(
    "content",
    [gguf(), gguf({"general.architecture": (8, "llama-like-not")}), gguf({"llama.context_length": (4, 2**31)})],
    ids=["tensors missing", "another architecture", "absurd context"],
)
def test_a_gguf_that_is_not_llama_like_fails_alone(node: RealNode, tmp_path: Path, content: bytes) -> None:
    """Either `model add` refuses it, or its requests fail; the node's own model never notices."""
    path = tmp_path / "odd.gguf"
    path.write_bytes(content)
    worker = node.children()["worker"]
    try:
        node.call("model.add", path=str(path), name="odd")
        with pytest.raises(LLMasOSError) as caught:
            node.ask(STORY, model="odd")
        assert caught.value.code in ("engine_failed", "no_memory", "prompt_too_long")
        node.call("model.rm", model="odd")
    except StoreError as error:
        assert "odd.gguf" in error.message
    assert node.ask(STORY)["status"] == "ok"
    assert node.children()["worker"] == worker


def test_a_model_that_vanishes_from_the_disk_fails_its_requests(idle_node: RealNode) -> None:
    """The file is gone when it shall be loaded: an error that says how to get it back, and the daemon lives."""
    idle_node.ask(STORY)
    idle_node.call("model.drop", model=MODEL)
    blob(idle_node).unlink()
    with pytest.raises(LLMasOSError) as caught:
        idle_node.ask(STORY)
    assert caught.value.code in ("engine_failed", "unknown_model")
    idle_node.call("model.pull", model=MODEL)
    assert idle_node.ask(STORY)["status"] == "ok"


def test_suspended_tasks_outlive_their_worker_and_hold_up_nobody(node: RealNode) -> None:
    """A suspended task of a dead worker waits for its resume; others run meanwhile; killed, it is gone."""
    with node.client() as client:
        stream = client.stream("submit", op="generate", body={"prompt": STORY, "max_tokens": 60, "temperature": 0})
        task = next(stream)["accepted"]["task"]
        eventually(lambda: bool(node.tasks(id=task, state="RUNNING")), "it runs")
        assert node.call("suspend", task=task)["state"] == "SUSPENDED"
        os.kill(node.children()["worker"], signal.SIGKILL)
        assert node.ask(STORY)["status"] == "ok"
        assert node.call("resume", task=task)["state"] != "SUSPENDED"
        assert stream.finish()["usage"]["completion_tokens"] == 60
    with pytest.raises(UnknownTask):
        node.call("resume", task="0-0")


def test_a_worker_killed_while_it_prepares_is_replaced_too(node: RealNode, phone: Device) -> None:
    """At once after the request, before a token is there: answered all the same."""
    for number in range(3):
        phone.generate(f"p{number}", STORY + " and" * 300, max_tokens=2)
        time.sleep(0.01 * number)
        os.kill(node.children()["worker"], signal.SIGKILL)
        assert phone.reply(f"p{number}")["status"] == "ok"
