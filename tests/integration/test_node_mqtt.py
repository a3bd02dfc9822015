"""Tests of a real node over MQTT: requests, streams, duplicates and ceilings, as devices see them."""

import time

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from tests.integration.conftest import MakeDevice
from tests.integration.real_node import ROOT, Device, RealNode, eventually

CAPITAL = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}


def test_a_chat_is_answered_and_its_stream_joins_to_the_text(device: Device) -> None:
    """Both protocols: accepted, deltas from seq 0, done, then the whole reply, which the deltas add up to."""
    device.send("chat", CAPITAL | {"id": "c1", "stream": True, "max_tokens": 24})
    reply = device.reply("c1")
    topic = f"{ROOT}/res/{device.name}/c1"
    assert (reply["id"], reply["status"], reply["node"], reply["class"]) == ("c1", "ok", "kitchen", "normal")
    assert len(reply["output"]["text"]) > 20
    assert reply["usage"]["prompt_tokens"] > 5
    assert 0 < reply["usage"]["completion_tokens"] <= 24
    assert reply["timing"]["first_token_ms"] <= reply["timing"]["total_ms"]
    *deltas, done = device.all(f"{topic}/stream")
    assert [delta["seq"] for delta in deltas] == list(range(len(deltas)))
    assert done == {"seq": len(deltas), "done": True}
    assert "".join(delta["delta"] for delta in deltas) == reply["output"]["text"]
    assert {delta["attempt"] for delta in deltas} == {1}
    assert device.next(f"{topic}/accepted")["task"] == reply["task"]
    order = device.topics()
    assert order.index(f"{topic}/accepted") < order.index(f"{topic}/stream") < order.index(topic)


def test_generate_is_greedy_the_same_every_time_and_at_qos_0(device: Device) -> None:
    """The same prompt at temperature 0 gives the same text, durable or not, and `max_tokens` is kept."""
    device.generate("g1", "The sky is")
    device.generate("g0", "The sky is", qos=0)
    first, second = device.reply("g1"), device.reply("g0")
    assert first["output"]["text"] == second["output"]["text"] != ""
    assert (first["usage"]["completion_tokens"], first["output"]["finish_reason"]) == (8, "length")


def test_answers_that_end_in_the_same_step_are_all_whole(phone: Device) -> None:
    """Tasks of one batch that reach their limits together each give all their tokens."""
    for number in range(4):
        phone.generate(f"w{number}", "Once upon a time", max_tokens=12)
    replies = [phone.reply(f"w{number}") for number in range(4)]
    assert [reply["usage"]["completion_tokens"] for reply in replies] == [12] * 4
    assert len({reply["output"]["text"] for reply in replies}) == 1


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(phone: Device) -> None:
    """What comes before the stop string is the answer."""
    phone.generate("s0", "One, two, three, four,", max_tokens=16)
    text = phone.reply("s0")["output"]["text"]
    stop = text.split()[2]
    phone.generate("s1", "One, two, three, four,", max_tokens=16, stop=[stop])
    reply = phone.reply("s1")
    assert reply["output"] == {"text": text[: text.index(stop)], "finish_reason": "stop"}


def test_a_schema_is_kept_and_the_value_comes_decoded(phone: Device) -> None:
    """The answer is JSON of the asked form; `json` gives some object."""
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    phone.send("chat", CAPITAL | {"id": "f1", "format": schema, "max_tokens": 40})
    reply = phone.reply("f1")
    assert set(reply["output"]["data"]) == {"city", "big"}
    assert reply["output"]["data"]["city"] in ("Paris", "Rome")
    assert isinstance(reply["output"]["data"]["big"], bool)


def test_a_session_remembers_and_runs_in_order(phone: Device) -> None:
    """The second turn's prompt holds the first one and its answer, computed already, and it waits for it."""
    first = {"messages": [{"role": "user", "content": "My name is Ada. Say hello."}], "session": "s", "temperature": 0}
    second = {"messages": [{"role": "user", "content": "What is my name?"}], "session": "s", "temperature": 0}
    phone.send("chat", first | {"id": "t1", "max_tokens": 12})
    phone.send("chat", second | {"id": "t2", "max_tokens": 16})
    one, two = phone.reply("t1"), phone.reply("t2")
    assert two["usage"]["prompt_tokens"] > one["usage"]["prompt_tokens"] + one["usage"]["completion_tokens"]
    assert two["usage"]["cached_tokens"] > 0


def test_response_topic_and_correlation_are_echoed(phone: Device) -> None:
    """MQTT 5: the reply and all beside it go to the response topic, with the correlation data and content type."""
    topic = f"{ROOT}/res/{phone.name}/my/own"
    body = {"id": "r1", "prompt": "Hello", "max_tokens": 4, "stream": True, "reply_to": f"{ROOT}/res/{phone.name}/no"}
    phone.send("generate", body, ResponseTopic=topic, CorrelationData=b"\0\xffx")
    phone.next(topic)
    for suffix in ("", "/accepted", "/stream"):
        properties = phone.messages(topic + suffix)[0].properties
        assert properties is not None
        assert vars(properties)["CorrelationData"] == b"\0\xffx"
        assert vars(properties)["ContentType"] == "application/json"
    assert f"{ROOT}/res/{phone.name}/no" not in phone.topics()


def test_reply_to_works_without_mqtt_5(node: RealNode, make_device: MakeDevice) -> None:
    """A 3.1.1 client names its reply topic in the body."""
    old = make_device(node.port, "old", MQTTProtocolVersion.MQTTv311)
    topic = f"{ROOT}/res/old/elsewhere"
    old.send("generate", {"prompt": "Hello", "max_tokens": 4, "reply_to": topic})
    reply = old.next(topic)
    assert (reply["status"], bool(reply["id"])) == ("ok", True)


@pytest.mark.parametrize(
    "topic", ["llmasos/v1/home/kitchen/res/lamp/x", "home/lights", f"{ROOT}/status", f"{ROOT}/res/PHONE/+", "$SYS/x"]
)
def test_reply_topics_are_confined_to_the_callers_own(phone: Device, topic: str) -> None:
    """The node speaks for nobody: another's topic, a free one, a wildcard are refused, on the caller's own topic."""
    topic = topic.replace("PHONE", phone.name)
    phone.listen("home/lights")
    error = phone.ask("generate", {"id": "p1", "prompt": "Hello", "max_tokens": 2, "reply_to": topic}, "p1")["error"]
    assert error["code"] == "not_permitted"
    assert "reply_to" in error["message"]
    assert topic not in phone.topics()


def test_a_listed_reply_topic_is_allowed_to_its_client_alone(node: RealNode, make_device: MakeDevice) -> None:
    """What the node file lists for one client is nobody else's."""
    trusted = make_device(node.port, "trusted")
    trusted.listen("home/answers/#")
    trusted.listen("home/answers")
    trusted.send("generate", {"id": "l1", "prompt": "Hello", "max_tokens": 2, "reply_to": "home/answers"})
    assert trusted.next("home/answers")["status"] == "ok"


def test_a_class_above_the_ceiling_is_capped_and_the_reply_says_so(node: RealNode, make_device: MakeDevice) -> None:
    """The lamp's ceiling is normal; who has none gets what it asks for."""
    lamp, guest = make_device(node.port, "lamp"), make_device(node.port, "guest")
    for device in (lamp, guest):
        device.send("generate", {"id": "k1", "prompt": "Hello", "max_tokens": 2, "class": "critical"})
    assert lamp.reply("k1")["class"] == "normal"
    assert guest.reply("k1")["class"] == "critical"


def test_model_operations_are_for_those_who_may(node: RealNode, phone: Device, make_device: MakeDevice) -> None:
    """Not permitted by default; a client with `operate` may load."""
    assert phone.ask("model.drop", {"id": "m1", "model": "smollm2-135m"}, "m1")["error"]["code"] == "not_permitted"
    trusted = make_device(node.port, "trusted")
    reply = trusted.ask("model.load", {"id": "m2", "model": "smollm2-135m"}, "m2")
    assert reply["output"] == {"id": "smollm2-135m", "state": "loaded"}


def test_nobody_is_the_operator_over_mqtt(node: RealNode, make_device: MakeDevice) -> None:
    """The control socket's name is refused, and what it would repeat is not told."""
    node.ask("Secret", id="shared-id")
    thief = make_device(node.port, "operator")
    thief.send("generate", {"id": "shared-id", "prompt": "Secret"})
    assert thief.reply("invalid")["error"]["code"] == "not_permitted"


def test_status_is_answered_and_retained(phone: Device) -> None:
    """`status` over MQTT, and the retained topics of a node that is well."""
    reply = phone.ask("status", {"id": "st"}, "st")
    assert reply["output"]["ready"] is True
    assert {row["id"]: row["state"] for row in reply["output"]["models"]} == {"smollm2-135m": "loaded"}
    phone.listen(f"{ROOT}/+")
    status, info, models = (phone.next(f"{ROOT}/{name}") for name in ("status", "info", "models"))
    assert (status["state"], bool(status["boot_id"]), status["since"][-1]) == ("online", True, "Z")
    assert info["cores"] > 0
    assert models[0]["state"] == "loaded"  # type: ignore[index]
    assert all(phone.messages(f"{ROOT}/{name}")[0].retain for name in ("status", "info", "models"))


def test_cancel_ends_a_task_with_its_text_so_far(node: RealNode, phone: Device) -> None:
    """By the request's id; afterwards there is nothing more to cancel; another's task is not one's own."""
    phone.generate("x1", "Once upon a time", max_tokens=400, stream=True)
    topic = f"{ROOT}/res/{phone.name}/x1"
    phone.nth(f"{topic}/stream", 1)
    reply = phone.ask("cancel", {"id": "x2", "target": "x1"}, "x2")
    assert reply["output"]["state"] == "TERMINATED"
    error = phone.reply("x1")["error"]
    assert error["code"] == "cancelled"
    shown = "".join(message.get("delta", "") for message in phone.all(f"{topic}/stream"))
    assert error["details"]["text"].startswith(shown[:20])
    assert phone.ask("cancel", {"id": "x3", "target": "x1"}, "x3")["error"]["code"] == "unknown_task"
    with node.client() as client:
        stream = client.stream("submit", op="generate", body={"prompt": "Long", "max_tokens": 400})
        task = next(stream)["accepted"]["task"]
        assert phone.ask("cancel", {"id": "x4", "target": task}, "x4")["error"]["code"] == "not_permitted"
    eventually(lambda: not node.tasks(id=task), "the task of a caller that hung up is cancelled")


def test_duplicates_are_computed_once(node: RealNode, phone: Device) -> None:
    """A repeat in flight joins the task and does not double its stream; one after the reply gets the same bytes."""
    body = {"id": "d1", "prompt": "Once upon a time", "max_tokens": 48, "stream": True, "temperature": 0}
    topic = f"{ROOT}/res/{phone.name}/d1"
    phone.send("generate", body)
    phone.next(f"{topic}/stream")
    phone.send("generate", body | {"prompt": "something else"})
    reply = phone.reply("d1")
    eventually(lambda: not node.tasks(client=phone.name), "nothing runs any more")
    phone.send("generate", body)
    again = phone.nth(topic, len(phone.all(topic)))
    assert again == reply
    assert len({message["task"] for message in phone.all(f"{topic}/accepted")}) == 1
    deltas = [message for message in phone.all(f"{topic}/stream") if "delta" in message]
    assert [delta["seq"] for delta in deltas] == list(range(len(deltas)))
    assert "".join(delta["delta"] for delta in deltas) == reply["output"]["text"]
    assert phone.messages(topic)[0].payload == phone.messages(topic)[-1].payload


def test_a_repeat_at_qos_0_is_computed_once_too(phone: Device) -> None:
    """Best effort, but not twice the work."""
    phone.generate("q1", "Hello there", qos=0)
    first = phone.reply("q1")
    phone.generate("q1", "Hello there", qos=0)
    assert phone.nth(f"{ROOT}/res/{phone.name}/q1", 1)["task"] == first["task"]


def test_deadlines_count_and_bring_the_text_so_far(phone: Device) -> None:
    """By the body, and by MQTT 5's expiry: `deadline_exceeded`, with what there was."""
    phone.generate("dl", "Once upon a time", max_tokens=500, deadline_ms=600)
    error = phone.reply("dl")["error"]
    assert error["code"] == "deadline_exceeded"
    assert "text" in error["details"]
    began = time.monotonic()
    body = {"id": "ex", "prompt": "Once upon a time", "max_tokens": 500}
    phone.send("generate", body, MessageExpiryInterval=1)
    assert phone.reply("ex")["error"]["code"] == "deadline_exceeded"
    assert time.monotonic() - began < 10


def test_a_request_to_any_node_is_answered(phone: Device) -> None:
    """The shared subscription brings it to a node, whose reply says which."""
    phone.publish(f"llmasos/v1/home/any/req/{phone.name}/generate", b'{"id": "any", "prompt": "Hi", "max_tokens": 2}')
    assert phone.reply("any")["node"] == "kitchen"
