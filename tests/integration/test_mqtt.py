"""Tests of the MQTT port against a real mosquitto, with real clients in MQTT 5 and 3.1.1."""

import os
import queue
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from llmasos_edge.errors import ConfigError
from llmasos_edge.ipc.broker import ManagedBroker
from llmasos_edge.ipc.mqtt import Acknowledge, Endpoint, Handlers, Incoming, MqttPort
from llmasos_edge.ipc.topics import Topics

TOPICS = Topics("home", "kitchen")
CHAT = "llmasos/v1/home/kitchen/req/phone/chat"
OFFLINE = b'{"state":"offline"}'
PATIENCE_S = 10.0


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; the test fails if it does not within PATIENCE_S."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def no_delay(connection: object) -> None:
    """Have small packets sent at once."""
    assert isinstance(connection, socket.socket)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Node:
    """A port, and what it brought."""

    def __init__(self, port: int) -> None:
        self.requests: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self.messages: queue.SimpleQueue[tuple[str, bytes, bool, Acknowledge]] = queue.SimpleQueue()
        self.links: queue.SimpleQueue[bool] = queue.SimpleQueue()
        handlers = Handlers(
            self.requests.put, lambda *message: self.messages.put(message), self.links.put, lambda: None
        )
        self.port = MqttPort(Endpoint("127.0.0.1", port), TOPICS, handlers, OFFLINE)
        self.port.start()
        assert self.links.get(timeout=PATIENCE_S)

    def request(self) -> Incoming:
        """The next request."""
        return self.requests.get(timeout=PATIENCE_S)


class Caller:
    """A device: publishes, and collects what it subscribed to."""

    def __init__(self, port: int, name: str, protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5) -> None:
        self.got: queue.SimpleQueue[paho.MQTTMessage] = queue.SimpleQueue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=protocol)
        self.client.on_message = lambda client, data, message: self.got.put(message)
        self.client.on_socket_open = lambda client, data, connection: no_delay(connection)
        connected = threading.Event()
        self.client.on_connect = lambda *_: connected.set()
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert connected.wait(PATIENCE_S)

    def publish(self, topic: str, body: bytes, *, qos: int = 1, retain: bool = False, **properties: object) -> None:
        """Publish, and wait until the broker has it."""
        sent = None
        if properties:
            sent = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            for name, value in properties.items():
                setattr(sent, name, value)
        self.client.publish(topic, body, qos, retain, sent).wait_for_publish(PATIENCE_S)

    def listen(self, pattern: str) -> None:
        """Subscribe, and wait until that counts."""
        subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.subscribe(pattern, 1)
        assert subscribed.wait(PATIENCE_S)

    def next(self) -> paho.MQTTMessage:
        """The next message."""
        return self.got.get(timeout=PATIENCE_S)

    def close(self) -> None:
        """Leave."""
        self.client.disconnect()
        self.client.loop_stop()
        del self.client  # and with it its descriptors


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ManagedBroker]:
    """A real mosquitto on a free port."""
    broker = ManagedBroker(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def node(broker: ManagedBroker) -> Iterator[Node]:
    """A connected port."""
    node = Node(broker.port)
    yield node
    node.port.stop(drain_s=0.1)


@pytest.fixture(params=[MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311], ids=["v5", "v311"])
def caller(broker: ManagedBroker, request: pytest.FixtureRequest) -> Iterator[Caller]:
    """A device that speaks MQTT 5, and one that speaks 3.1.1."""
    caller = Caller(broker.port, "phone", request.param)
    yield caller
    caller.close()


@pytest.fixture
def phone(broker: ManagedBroker) -> Iterator[Caller]:
    """A device that speaks MQTT 5."""
    caller = Caller(broker.port, "phone")
    yield caller
    caller.close()


def crash(broker: ManagedBroker) -> None:
    """Have the broker save, then kill it."""
    pid = broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGUSR1)
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: broker.pid is None)


def revive(broker: ManagedBroker) -> None:
    """Poll, as the daemon does, until the broker is back."""
    eventually(broker.poll)


def test_a_request_arrives_and_its_reply_gets_back(node: Node, caller: Caller) -> None:
    """Both protocols: client, op, body and QoS arrive; the reply is delivered, and its delivery told."""
    caller.listen("llmasos/v1/home/kitchen/res/phone/#")
    caller.publish(CHAT, b"{}")
    request = node.request()
    assert (request.client, request.op, request.payload, request.qos) == ("phone", "chat", b"{}", 1)
    assert (request.response_topic, request.correlation, request.expiry_s) == (None, None, None)
    request.ack()
    delivered = threading.Event()
    assert node.port.publish(TOPICS.result("phone", "7"), b"ok", 1, on_delivered=delivered.set)
    reply = caller.next()
    assert (reply.topic, reply.payload) == ("llmasos/v1/home/kitchen/res/phone/7", b"ok")
    assert delivered.wait(PATIENCE_S)


def test_a_request_at_qos_0_needs_no_acknowledgement(node: Node, caller: Caller) -> None:
    """QoS 0 arrives as such; its ack does nothing, and takes no place in the line."""
    caller.publish(CHAT, b"0", qos=0)
    caller.publish(CHAT, b"1")
    first, second = node.request(), node.request()
    assert (first.qos, second.qos) == (0, 1)
    first.ack()
    second.ack()


def test_mqtt_5_properties_pass_through(node: Node, phone: Caller) -> None:
    """Response topic, correlation data and expiry come in; correlation data and content type go out."""
    phone.listen("my/answers")
    phone.publish(CHAT, b"{}", ResponseTopic="my/answers", CorrelationData=b"\0\xff", MessageExpiryInterval=30, qos=1)
    request = node.request()
    assert (request.response_topic, request.correlation, request.expiry_s) == ("my/answers", b"\0\xff", 30)
    node.port.publish("my/answers", b"{}", 1, correlation=request.correlation, content_type="application/json")
    reply = phone.next()
    assert reply.properties is not None
    assert vars(reply.properties)["CorrelationData"] == b"\0\xff"
    assert vars(reply.properties)["ContentType"] == "application/json"


def test_requests_to_any_reach_a_node(node: Node, caller: Caller) -> None:
    """The shared subscription brings what is addressed to no node in particular."""
    caller.publish("llmasos/v1/home/any/req/phone/status", b"{}")
    assert node.request().op == "status"


def test_retained_requests_are_ignored(broker: ManagedBroker, phone: Caller, node: Node) -> None:
    """One that was there before, and one that is published retained now: neither is brought, the next request is."""
    phone.publish(CHAT, b"old", retain=True)
    phone.publish(CHAT, b"new")
    assert node.request().payload == b"new"
    node.port.stop(drain_s=0)
    again = Node(broker.port)
    phone.publish(CHAT, b"newer")
    # Unacknowledged before, so the broker brings it again; and never the retained one.
    assert [again.request().payload, again.request().payload] == [b"new", b"newer"]
    again.port.stop(drain_s=0)


def test_sensor_messages_reach_their_subscription(node: Node, phone: Caller) -> None:
    """Triggers get topic, payload and whether it was retained; after unsubscribing nothing more comes."""
    phone.publish("zigbee2mqtt/kitchen/smoke", b"1", retain=True)
    node.port.subscribe("zigbee2mqtt/+/smoke")
    topic, payload, retained, ack = node.messages.get(timeout=PATIENCE_S)
    assert (topic, payload, retained) == ("zigbee2mqtt/kitchen/smoke", b"1", True)
    ack()
    phone.publish("zigbee2mqtt/kitchen/smoke", b"2", retain=True)
    topic, payload, retained, ack = node.messages.get(timeout=PATIENCE_S)
    assert (payload, retained) == (b"2", False)
    ack()
    node.port.unsubscribe("zigbee2mqtt/+/smoke")
    phone.publish("zigbee2mqtt/kitchen/smoke", b"3")
    phone.publish(CHAT, b"{}")
    node.request()
    assert node.messages.empty()


def test_acknowledgements_go_out_in_order_and_open_the_way_for_more(node: Node, phone: Caller) -> None:
    """The broker sends no more than agreed until the first is acknowledged, however many later ones are."""
    for number in range(25):
        phone.publish(CHAT, b"%d" % number)
    first = [node.request() for _ in range(20)]
    for request in reversed(first[1:]):
        request.ack()
    with pytest.raises(queue.Empty):
        node.requests.get(timeout=0.3)
    first[0].ack()
    rest = [node.request() for _ in range(5)]
    assert [int(request.payload) for request in [*first, *rest]] == list(range(25))


def test_unacknowledged_requests_come_again_after_the_broker_died(
    broker: ManagedBroker, node: Node, phone: Caller
) -> None:
    """Redelivery after a crash of the broker; an acknowledgement that is late is not sent on the new connection."""
    node.port.subscribe("zigbee2mqtt/+/smoke")
    phone.publish(CHAT, b"a")
    phone.publish(CHAT, b"b")
    late = [node.request(), node.request()]
    crash(broker)
    assert node.links.get(timeout=PATIENCE_S) is False
    told = threading.Event()
    assert node.port.publish("away", b"kept", 1, on_delivered=told.set)
    assert not node.port.publish("away", b"lost", 0)
    assert not told.wait(0.05)
    revive(broker)
    assert node.links.get(timeout=PATIENCE_S) is True
    assert told.wait(PATIENCE_S)
    again = [node.request(), node.request()]
    assert [request.payload for request in again] == [b"a", b"b"]
    for request in late:
        request.ack()
    again[0].ack()
    crash(broker)
    assert node.links.get(timeout=PATIENCE_S) is False
    revive(broker)
    assert node.links.get(timeout=PATIENCE_S) is True
    assert node.request().payload == b"b"
    eventually(phone.client.is_connected)
    phone.publish("zigbee2mqtt/hall/smoke", b"1")
    assert node.messages.get(timeout=PATIENCE_S)[0] == "zigbee2mqtt/hall/smoke"


def test_a_broker_that_forgot_everything_is_subscribed_to_again(
    broker: ManagedBroker, node: Node, tmp_path: Path
) -> None:
    """Requests and sensor messages come also from a broker that lost its sessions."""
    node.port.subscribe("zigbee2mqtt/+/smoke")
    crash(broker)
    (tmp_path / "broker" / "mosquitto.db").unlink()
    assert node.links.get(timeout=PATIENCE_S) is False
    revive(broker)
    assert node.links.get(timeout=PATIENCE_S) is True
    phone = Caller(broker.port, "phone")
    phone.publish(CHAT, b"{}")
    assert node.request().payload == b"{}"
    phone.publish("zigbee2mqtt/hall/smoke", b"1")
    assert node.messages.get(timeout=PATIENCE_S)[0] == "zigbee2mqtt/hall/smoke"
    phone.close()


def test_the_last_will_appears_when_the_node_vanishes_and_not_when_it_stops(
    broker: ManagedBroker, phone: Caller
) -> None:
    """A broken connection publishes `offline`, retained; stop() leaves what was published last."""
    phone.listen(TOPICS.status)
    vanishing = Node(broker.port)
    connection = vanishing.port._client.socket()
    assert isinstance(connection, socket.socket)
    connection.shutdown(socket.SHUT_RDWR)
    assert phone.next().payload == OFFLINE
    late = Caller(broker.port, "late")
    late.listen(TOPICS.status)
    assert late.next().payload == OFFLINE
    late.close()
    assert vanishing.links.get(timeout=PATIENCE_S) is False
    assert vanishing.links.get(timeout=PATIENCE_S) is True
    vanishing.port.publish(TOPICS.status, b"stopped", 1, retain=True)
    vanishing.port.stop()
    assert phone.next().payload == b"stopped"
    with pytest.raises(queue.Empty):
        phone.got.get(timeout=0.2)


def test_a_handler_that_fails_holds_up_nobody(
    broker: ManagedBroker, phone: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in a handler drops that message alone; the port goes on, and acknowledges what follows."""
    seen: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def on_request(request: Incoming) -> None:
        if request.payload == b"bad":
            raise ValueError("a bug")
        seen.put(request.payload)
        request.ack()

    linked = threading.Event()
    handlers = Handlers(on_request, lambda *_: None, lambda up: linked.set(), lambda: None)
    port = MqttPort(Endpoint("127.0.0.1", broker.port), TOPICS, handlers, OFFLINE)
    port.start()
    assert linked.wait(PATIENCE_S)
    phone.publish(CHAT, b"bad")
    for number in range(30):
        phone.publish(CHAT, b"%d" % number)
    assert [seen.get(timeout=PATIENCE_S) for _ in range(30)] == [b"%d" % number for number in range(30)]
    port.stop()
    assert "could not be handled" in caplog.text
    caplog.clear()  # its records hold the traceback, and that the port


def test_why_there_is_no_connection_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Address and reason, once; and a port that never found a broker stops all the same."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = int(taken.getsockname()[1])
    handlers = Handlers(lambda request: None, lambda *_: None, lambda up: None, lambda: None)
    port = MqttPort(Endpoint("127.0.0.1", free), TOPICS, handlers, OFFLINE)
    port.start()
    eventually(lambda: f"127.0.0.1:{free}: no connection: [Errno 111] Connection refused" in caplog.text)
    assert not port.connected
    port.stop()


class OldBroker(threading.Thread):
    """A broker that knows only MQTT 3.1.1: it refuses protocol 5 as such brokers do, and passes the rest on."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._target = port
        self.port = int(self._listener.getsockname()[1])
        self.levels: list[int] = []

    def run(self) -> None:
        """Serve two connections: one of each protocol."""
        for _ in range(2):
            connection = self._listener.accept()[0]
            with connection:
                first = connection.recv(4096)
                self.levels.append(first[first.index(b"MQTT") + 4])
                if self.levels[-1] == 5:
                    connection.sendall(b"\x20\x02\x00\x01")  # CONNACK: unacceptable protocol version
                else:
                    self._pass_on(connection, first)
        self._listener.close()

    def _pass_on(self, connection: socket.socket, first: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self._target)) as onward:
            onward.sendall(first)
            while True:
                for ready in select.select([connection, onward], [], [])[0]:
                    piece = ready.recv(65_536)
                    if not piece:
                        return
                    (onward if ready is connection else connection).sendall(piece)


def test_a_broker_without_mqtt_5_gets_3_1_1(broker: ManagedBroker, caller: Caller) -> None:
    """The port falls back, keeps what was published before, and acknowledges as ever."""
    old = OldBroker(broker.port)
    old.start()
    requests: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
    linked, told = threading.Event(), threading.Event()
    handlers = Handlers(requests.put, lambda *_: None, lambda up: linked.set(), lambda: None)
    port = MqttPort(Endpoint("127.0.0.1", old.port), TOPICS, handlers, OFFLINE)
    assert port.publish("early", b"1", 1, content_type="application/json", on_delivered=told.set)
    port.start()
    assert linked.wait(PATIENCE_S)
    assert told.wait(PATIENCE_S)
    caller.publish(CHAT, b"{}")
    requests.get(timeout=PATIENCE_S).ack()
    port.stop()
    old.join(PATIENCE_S)
    assert old.levels == [5, 4]


def test_a_round_trip_is_quick(node: Node, phone: Caller) -> None:
    """No packet of ours waits for another to be acknowledged: that would show as 40 ms for each."""
    phone.listen("llmasos/v1/home/kitchen/res/phone/#")
    took = []
    for _ in range(9):
        began = time.monotonic()
        phone.client.publish(CHAT, b"{}", 1)
        node.request().ack()
        node.port.publish(TOPICS.result("phone", "7"), b"ok", 1)
        phone.next()
        took.append(time.monotonic() - began)
    assert sorted(took)[4] < 0.030


def test_an_idle_port_hardly_costs_anything(node: Node) -> None:
    """Waiting for messages takes under 0.5 % of a core (paho looks up once a second)."""
    before = time.process_time()
    time.sleep(1.5)
    assert time.process_time() - before < 0.0075


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker", Endpoint("broker", 1883)),
        ("mqtt://[::1]:1884/", Endpoint("::1", 1884)),
        ("mqtts://broker", Endpoint("broker", 8883, tls=True)),
    ],
)
def test_urls_become_endpoints(url: str, expected: Endpoint) -> None:
    """Default ports follow the scheme."""
    assert Endpoint.from_url(url) == expected


@pytest.mark.parametrize(
    "url", ["broker", "http://x", "mqtt://", "mqtt://x:0", "mqtt://x:99999", "mqtt://u:p@x", "mqtt://x/y"]
)
def test_other_urls_are_refused(url: str) -> None:
    """A wrong address is a configuration error that names the key."""
    with pytest.raises(ConfigError, match=r"mqtt\.url"):
        Endpoint.from_url(url)


def test_a_missing_ca_file_is_a_configuration_error() -> None:
    """TLS without its authority file fails at start, and says which file."""
    handlers = Handlers(lambda request: None, lambda *_: None, lambda up: None, lambda: None)
    with pytest.raises(ConfigError, match="no-such-file"):
        MqttPort(Endpoint("x", 8883, tls=True, ca_file="/no-such-file"), TOPICS, handlers, OFFLINE)
