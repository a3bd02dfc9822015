"""Tests of requests over MQTT: where replies go, what a stream looks like, and what comes back after a restart."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from llmasos_edge.api import mqtt_server
from llmasos_edge.api.calls import Calls
from llmasos_edge.api.mqtt_server import MqttServer
from llmasos_edge.api.standing import Standing
from llmasos_edge.ipc.mqtt import Incoming
from llmasos_edge.ipc.topics import Topics
from llmasos_edge.kernel.units import ClientId, Priority
from llmasos_edge.services.journal import Entry
from llmasos_edge.services.security import Caller, Security
from tests.api.conftest import Desk

RES = "llmasos/v1/home/desk/res/phone"


class Wire:
    """A broker connection that keeps what is published; `up` says whether it takes anything."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.correlations: list[bytes | None] = []
        self.up = True
        self.acks = 0

    def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,
        *,
        retain: bool = False,
        correlation: bytes | None = None,
        content_type: str | None = None,
        on_delivered: Callable[[], None] | None = None,
    ) -> bool:
        if self.up:
            self.sent.append((topic, json.loads(payload)))
            self.correlations.append(correlation)
            if on_delivered is not None:
                on_delivered()
        return self.up

    def on(self, topic: str) -> list[dict[str, Any]]:
        return [body for each, body in self.sent if each == topic]

    def incoming(self, op: str, body: bytes, qos: int = 1, **more: Any) -> Incoming:
        given = {"client": "phone", "response_topic": None, "correlation": None, "expiry_s": None} | more
        return Incoming(op=op, payload=body, qos=qos, ack=self.ack, **given)

    def ack(self) -> None:
        self.acks += 1


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def server(desk: Desk, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> MqttServer:
    monkeypatch.setattr(mqtt_server, "STREAM_EVERY_S", 0.0)
    absent: Any = None
    calls = Calls(
        node="desk",
        boot=desk.journal.boot(),
        kernel=desk.kernel,
        syscalls=desk.syscalls,
        standing=Standing(desk.syscalls),
        door=desk.door,
        models=absent,
        apps=absent,
        sessions=desk.sessions,
        about=absent,
        clock_ms=lambda: desk.now,
        slow=lambda work, done, failed: done(work()),
    )
    security = Security([Caller(ClientId("lamp"), Priority.NORMAL, reply_topics=("home/x",))], proven=True)
    desk.disk()
    return MqttServer(
        door=desk.door,
        calls=calls,
        journal=desk.journal,
        security=security,
        topics=Topics("home", "desk"),
        publisher=lambda: wire,
        post=desk.post,
    )


def test_a_stream_and_its_reply(desk: Desk, server: MqttServer, wire: Wire) -> None:
    """accepted, deltas from seq 0, a new attempt from 0 after the worker died, done, the reply; all correlated."""
    server.on_request(wire.incoming("generate", b'{"id": "a", "prompt": "x", "stream": true}', correlation=b"\0"))
    desk.until(lambda: wire.on(f"{RES}/a/accepted"))
    desk.engine.say("one ")
    desk.engine.say("two")
    desk.settle()
    desk.engine.running.clear()
    desk.engine.kill()
    desk.settle()
    desk.answer("again")
    desk.until(lambda: wire.on(f"{RES}/a"))
    assert wire.on(f"{RES}/a/stream") == [
        {"seq": 0, "delta": "one ", "attempt": 1},
        {"seq": 1, "delta": "two", "attempt": 1},
        {"seq": 0, "delta": "again", "attempt": 2},
        {"seq": 1, "done": True},
    ]
    assert wire.on(f"{RES}/a")[0]["output"]["text"] == "again"
    assert set(wire.correlations) == {b"\0"}
    assert wire.acks == 1


def test_only_what_is_on_disk_is_promised(desk: Desk, server: MqttServer, wire: Wire) -> None:
    """A request at QoS 0 is answered, and gets no `accepted`: after a crash nobody would know of it."""
    server.on_request(wire.incoming("generate", b'{"id": "a", "prompt": "x"}', qos=0))
    desk.settle()
    desk.answer("done")
    desk.until(lambda: wire.on(f"{RES}/a"))
    assert not wire.on(f"{RES}/a/accepted")


@pytest.mark.parametrize(
    ("body", "more", "topic", "code"),
    [
        (b"{", {}, f"{RES}/invalid", "bad_request"),
        (b'{"id": "a"}', {}, f"{RES}/a", "bad_request"),
        (b'{"id": "a", "prompt": 1, "reply_to": "%s/b"}' % RES.encode(), {}, f"{RES}/b", "bad_request"),
        (b'{"id": "a", "prompt": 1, "reply_to": "home/x"}', {}, f"{RES}/a", "bad_request"),
        (b'{"id": "a", "prompt": "x", "reply_to": "home/x"}', {}, f"{RES}/a", "not_permitted"),
        (b'{"id": "a", "prompt": "x"}', {"response_topic": f"{RES}/+"}, f"{RES}/a", "not_permitted"),
        (b'{"id": "a", "prompt": "x"}', {"expiry_s": 0}, f"{RES}/a", "deadline_exceeded"),
        (
            b'{"id": "a", "prompt": "x"}',
            {"client": "operator"},
            RES.replace("phone", "operator/invalid"),
            "not_permitted",
        ),
        (b'{"id": "a", "prompt": "x"}', {"client": "http"}, RES.replace("phone", "http/invalid"), "not_permitted"),
    ],
)
def test_what_is_wrong_is_answered_where_its_caller_looks(
    desk: Desk, server: MqttServer, wire: Wire, body: bytes, more: dict[str, Any], topic: str, code: str
) -> None:
    """On the reply topic if that may be, else on the request's own; acknowledged, and nothing reaches the kernel."""
    server.on_request(wire.incoming("generate", body, **more))
    desk.settle()
    ((where, reply),) = wire.sent
    assert (where, reply["error"]["code"], wire.acks) == (topic, code, 1)
    assert desk.kernel.table.live_count == 0


def test_a_reply_that_found_no_room_is_given_when_there_is_some(desk: Desk, server: MqttServer, wire: Wire) -> None:
    """Once: what was delivered is not given again."""
    server.on_request(wire.incoming("generate", b'{"id": "a", "prompt": "x"}'))
    desk.until(lambda: wire.acks)
    wire.up = False
    desk.answer()
    desk.until(desk.journal.undelivered)
    wire.up = True
    server.deliver_again()
    desk.until(lambda: wire.on(f"{RES}/a"))
    assert [reply["status"] for reply in wire.on(f"{RES}/a")] == ["ok"]
    desk.until(lambda: not desk.journal.undelivered())
    server.deliver_again()
    desk.settle()
    assert len(wire.on(f"{RES}/a")) == 1


def test_a_request_of_the_journal_that_this_version_does_not_know_ends_with_an_error(
    desk: Desk, server: MqttServer, wire: Wire
) -> None:
    """Whoever waits for it hears why, and it is not tried again at every start."""
    route = b'{"topic": "%s/old"}' % RES.encode()
    body = b'{"prompt": "x", "field_of_another_version": 1}'
    entry = Entry(
        client="phone",
        id="old",
        task="0-9",
        op="generate",
        body=body,
        seed=1,
        route=route,
        accepted_wall_ms=desk.wall_ms,
    )
    desk.journal.accept(entry, lambda error: None)
    server.resume(entry)
    desk.until(lambda: wire.on(f"{RES}/old"))
    assert wire.on(f"{RES}/old")[0]["error"]["code"] == "bad_request"
    assert desk.journal.pending() == []


def test_cancel_reaches_ones_own_request_alone(desk: Desk, server: MqttServer, wire: Wire) -> None:
    """By its id, or by its task; another client's is not permitted."""
    server.on_request(wire.incoming("generate", b'{"id": "a", "prompt": "x"}'))
    desk.until(lambda: wire.on(f"{RES}/a/accepted"))
    server.on_request(wire.incoming("cancel", b'{"id": "c", "target": "1-1"}', client="lamp"))
    server.on_request(wire.incoming("cancel", b'{"id": "c", "target": "a"}'))
    desk.until(lambda: wire.on(f"{RES}/a"))
    assert wire.on(RES.replace("phone", "lamp/c"))[0]["error"]["code"] == "not_permitted"
    assert wire.on(f"{RES}/c")[0]["output"] == {"task": "1-1", "state": "TERMINATED"}
    assert wire.on(f"{RES}/a")[0]["error"]["code"] == "cancelled"
