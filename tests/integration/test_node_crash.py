"""Tests of what survives when a real node ends: by SIGKILL at any moment, by SIGTERM, and with its broker."""

import random
import time

import pytest

from llmasos_edge.errors import ShuttingDown, Unreachable
from llmasos_edge.ipc.broker import ManagedBroker
from tests.integration.conftest import MakeDevice, MakeNode
from tests.integration.real_node import ROOT, Device, RealNode, alive, eventually

PROMPTS = [
    "The sky is",
    "Once upon a time",
    "The capital of France is",
    "Water boils at",
    "def main():",
    "My favourite",
]


@pytest.fixture
def phone(outer_node: RealNode, outer_broker: ManagedBroker, make_device: MakeDevice) -> Device:
    return make_device(outer_broker.port, "phone")


def test_every_accepted_request_is_answered_after_kill_9_at_any_moment(outer_node: RealNode, phone: Device) -> None:
    """Several crashes at random moments: all is answered `ok`, with the text of an undisturbed run."""
    for number, prompt in enumerate(PROMPTS):
        phone.generate(f"calm-{number}", prompt, max_tokens=24)
    calm = [phone.reply(f"calm-{number}")["output"] for number in range(len(PROMPTS))]
    moments = random.Random(2)
    for crash in range(4):
        for number, prompt in enumerate(PROMPTS):
            phone.generate(f"r{crash}-{number}", prompt, max_tokens=24, stream=number % 2 == 0)
        time.sleep(moments.uniform(0, 0.9))
        outer_node.kill()
        outer_node.start()
        for number in range(len(PROMPTS)):
            reply = phone.reply(f"r{crash}-{number}")
            assert reply["status"] == "ok", reply
            assert reply["output"] == calm[number], reply
    topics = phone.topics()
    assert all(f"{ROOT}/res/phone/r{crash}-{number}/accepted" in topics for crash in range(4) for number in range(6))


def test_what_runs_again_starts_a_new_attempt_of_its_stream(outer_node: RealNode, phone: Device) -> None:
    """From seq 0, with a higher attempt, whole; and the journal has the request before anybody hears `accepted`."""
    phone.generate("s1", "Once upon a time", max_tokens=40, stream=True, temperature=0.9)
    topic = f"{ROOT}/res/phone/s1"
    phone.next(f"{topic}/stream")
    outer_node.kill()
    accepted = phone.next(f"{topic}/accepted")
    outer_node.start()
    reply = phone.reply("s1")
    assert reply["task"] == accepted["task"]
    *deltas, done = phone.all(f"{topic}/stream")
    again = [delta for delta in deltas if delta["attempt"] > 1]
    assert [delta["seq"] for delta in again] == list(range(len(again)))
    assert "".join(delta["delta"] for delta in again) == reply["output"]["text"]
    assert done == {"seq": len(again), "done": True}
    # The seed was resolved at acceptance: the new attempt says what the first one said.
    first = "".join(delta["delta"] for delta in deltas if delta["attempt"] == 1)
    assert reply["output"]["text"].startswith(first)


def test_the_last_will_and_the_goodbye(
    outer_node: RealNode, phone: Device, outer_broker: ManagedBroker, make_device: MakeDevice
) -> None:
    """online; offline after SIGKILL; online again, another boot; stopped after SIGTERM; each retained."""
    phone.listen(f"{ROOT}/status")

    def until(state: str) -> None:
        eventually(lambda: [each["state"] for each in phone.all(f"{ROOT}/status")[-1:]] == [state], state)

    until("online")
    outer_node.kill()
    until("offline")
    outer_node.start()
    until("online")
    assert outer_node.terminate() == 0
    until("stopped")
    assert len({message["boot_id"] for message in phone.all(f"{ROOT}/status")}) == 2
    late = make_device(outer_broker.port, "late")
    late.listen(f"{ROOT}/status")
    assert late.next(f"{ROOT}/status")["state"] == "stopped"


def test_sigterm_lets_durable_work_go_on_after_the_restart(outer_node: RealNode, phone: Device) -> None:
    """Durable: nothing is said, and the restart answers. QoS 0 and the control socket: `shutting_down`. Exit 0."""
    phone.generate("calm", "Once upon a time", max_tokens=60)
    calm = phone.reply("calm")["output"]["text"]
    phone.generate("durable", "Once upon a time", max_tokens=60)
    phone.next(f"{ROOT}/res/phone/durable/accepted")
    phone.generate("effort", "Once upon a time", qos=0, max_tokens=400, stream=True)
    with outer_node.client() as client:
        stream = client.stream("submit", op="generate", body={"prompt": "Once upon a time", "max_tokens": 400})
        next(stream)
        phone.next(f"{ROOT}/res/phone/effort/stream")
        began = time.monotonic()
        assert outer_node.terminate() == 0
        assert time.monotonic() - began < 8
        with pytest.raises(ShuttingDown):
            stream.finish()
    error = phone.reply("effort")["error"]
    assert (error["code"], error["retry_after_ms"] > 0) == ("shutting_down", True)
    assert not phone.all(f"{ROOT}/res/phone/durable")
    outer_node.start()
    assert phone.reply("durable")["output"]["text"] == calm


def test_a_detached_task_of_the_operator_survives(outer_node: RealNode) -> None:
    """`submit --detach`, kill -9, restart: `wait` gets the answer."""
    body = {"prompt": "Once upon a time", "max_tokens": 30, "temperature": 0}
    task = outer_node.call("submit", op="generate", body=body, detach=True)["task"]
    outer_node.kill()
    outer_node.start()
    assert (
        outer_node.call("wait", task=task)["output"]["text"]
        == outer_node.ask("Once upon a time", max_tokens=30)["output"]["text"]
    )


def test_a_repeat_after_a_restart_gets_the_old_reply(outer_node: RealNode, phone: Device) -> None:
    """The very same bytes, though the node died in between; and a session's turns are still there."""
    turn = {"session": "s", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "temperature": 0}
    phone.send("chat", turn | {"id": "one"})
    phone.reply("one")
    outer_node.kill()
    outer_node.start()
    phone.send("chat", turn | {"id": "one"})
    topic = f"{ROOT}/res/phone/one"
    phone.nth(topic, 1)
    assert len({bytes(message.payload) for message in phone.messages(topic)}) == 1
    phone.send("chat", turn | {"id": "two"})
    assert phone.reply("two")["usage"]["prompt_tokens"] > phone.reply("one")["usage"]["prompt_tokens"] + 8


def test_a_broker_that_restarts_loses_nothing_that_was_accepted(
    make_node: MakeNode, make_device: MakeDevice, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In the middle of a task; the reply waits for it. Status is online again, and what is asked then is answered."""
    folder = tmp_path_factory.mktemp("broker")
    broker = ManagedBroker(folder)
    broker.start()
    try:
        node = make_node(f'{{url: "mqtt://127.0.0.1:{broker.port}", trust: acl}}').start()
        phone = make_device(broker.port, "phone")
        phone.listen(f"{ROOT}/status")
        for number in range(3):
            phone.generate(f"b{number}", "Once upon a time", max_tokens=30, stream=True)
            phone.next(f"{ROOT}/res/phone/b{number}/accepted")
        port = broker.port
        broker.stop()
        eventually(lambda: not node.tasks(), "the tasks end without a broker")
        assert node.status()["broker"]["connected"] is False
        assert node.ask("Hello")["status"] == "ok"
        broker = ManagedBroker(folder, port)
        broker.start()
        assert {phone.reply(f"b{number}")["status"] for number in range(3)} == {"ok"}
        eventually(lambda: phone.all(f"{ROOT}/status")[-1]["state"] == "online", "the node is back")
        phone.generate("after", "Hello")
        assert phone.reply("after")["status"] == "ok"
    finally:
        broker.stop()


def test_nothing_is_left_running_after_kill_9(make_node: MakeNode) -> None:
    """The worker and the managed broker end with a daemon that can't end them; even a stopped worker does."""
    node = make_node().start()
    children = node.children()
    assert set(children) == {"worker", "mosquitto"}
    node.kill()
    eventually(lambda: not any(alive(pid) for pid in children.values()), "worker and broker are gone", 20)


def test_a_caller_that_hangs_up_with_the_node_is_told(make_node: MakeNode) -> None:
    """A SIGKILL in the middle of a call is an error that says so, not an endless wait."""
    node = make_node("{managed: true, port: 0}").start()
    with node.client() as client:
        stream = client.stream("submit", op="generate", body={"prompt": "Once", "max_tokens": 400})
        next(stream)
        node.kill()
        with pytest.raises(Unreachable, match="before it had answered"):
            stream.finish()
