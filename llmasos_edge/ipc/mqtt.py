"""The node's MQTT connection: requests in, replies out, acknowledged by hand; the only import of paho.

Threads: paho's loop thread calls the handlers, which must not block; publish, subscribe and the acknowledgements may
be called from any thread. Verified against paho-mqtt 2.2: its `ack()` only queues a PUBACK, and would send it on
whatever connection comes next, hence AckLine; its QoS 1 publishes stay queued until the broker acknowledges them.
"""

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from llmasos_edge.errors import ConfigError, Panic
from llmasos_edge.ipc.acks import AckLine, Deliveries
from llmasos_edge.ipc.outbox import Outbox, Outgoing
from llmasos_edge.ipc.topics import Topics, matches

KEEPALIVE_S = 30
SESSION_EXPIRY_S = 7 * 86_400
RECEIVE_MAXIMUM = 20  # unacknowledged messages that the broker may send at once: bounds our memory
MAX_PACKET = 2 * 1024 * 1024  # bytes; above the largest body, so that a larger one still gets an error that says so
IN_FLIGHT = 64  # QoS 1 publishes that paho has: what a broker takes at once, and the next
MAX_OUTBOX = 8 << 20  # bytes of QoS 1 publishes that wait for the broker
MAX_UNSENT = 1000  # the same, and those at QoS 0 that are not sent yet
UNSUPPORTED_PROTOCOL = 132  # CONNACK reason code

Acknowledge = Callable[[], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """Where the broker is, and who we are to it. `tls` without `ca_file` trusts the system's authorities."""

    host: str
    port: int
    tls: bool = False
    ca_file: str | None = None
    user: str | None = None
    password: str | None = None

    @classmethod
    def from_url(
        cls, url: str, *, ca_file: str | None = None, user: str | None = None, password: str | None = None
    ) -> "Endpoint":
        """The endpoint of `mqtt://host[:1883]` or `mqtts://host[:8883]`; ConfigError for anything else."""
        hint = f"mqtt.url: {url!r} is not mqtt://HOST[:PORT] or mqtts://HOST[:PORT]"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ConfigError(hint) from None
        extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or extra or port == 0:
            raise ConfigError(hint + (": user and password have keys of their own" if parts.username else ""))
        tls = parts.scheme == "mqtts"
        return cls(parts.hostname, port or (8883 if tls else 1883), tls, ca_file, user, password)


@dataclass(frozen=True)
class Incoming:
    """One request as it came. `ack` must be called once the request is safe, or refused; at QoS 0 it does nothing."""

    client: str
    op: str
    payload: bytes
    qos: int
    response_topic: str | None
    correlation: bytes | None
    expiry_s: int | None
    ack: Acknowledge


@dataclass(frozen=True)
class Handlers:
    """Where the port brings what arrives; called on its thread."""

    on_request: Callable[[Incoming], None]
    on_message: Callable[[str, bytes, bool, Acknowledge], None]  # topic, payload, retained, ack: subscribed topics
    on_link: Callable[[bool], None]  # True after (re)connecting and subscribing: publish the retained topics
    on_room: Callable[[], None]  # all that was taken is delivered, and something was not taken: give it again


class MqttPort:
    """A connection that is always wanted: it comes back by itself, after 1 to 60 s, for as long as the port runs."""

    def __init__(self, endpoint: Endpoint, topics: Topics, handlers: Handlers, will: bytes) -> None:
        """`will` is published on the status topic, retained, when the node vanishes without stop()."""
        self._endpoint = endpoint
        self._topics = topics
        self._handlers = handlers
        self._will = will
        self._protocol = MQTTProtocolVersion.MQTTv5
        self._filters: frozenset[str] = frozenset()
        self._linked = False
        self._link_mid: int | None = None
        self._trouble = ""
        self._stopping = False
        self._switch = threading.Lock()  # held while the client is replaced or stopped
        self._outbox = Outbox(MAX_OUTBOX, self._may_hand_over, self._hand_over)
        self._refused = False  # a message since the outbox was empty
        self._acks = AckLine(self._send_puback, lambda: self._outbox.long)
        self._client = self._make_client()

    def start(self) -> None:
        """Connect in the background; returns at once, also when there is no broker."""
        self._open(self._client)

    def stop(self, drain_s: float = 2.0) -> None:
        """Give what is queued `drain_s` to get out, then leave without the last will; the broker keeps our session."""
        deadline = time.monotonic() + drain_s
        while self._linked and (self._outbox or _deliveries(self._client)) and time.monotonic() < deadline:
            time.sleep(0.01)
        with self._switch:
            self._stopping = True
            self._client.disconnect()
            self._client.loop_stop()
            self._client = self._make_client()  # paho closes its descriptors with the client itself

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        return self._linked

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
        """Send; whether it was taken: at QoS 0 only while connected, at QoS 1 unless MAX_OUTBOX bytes wait.

        QoS 1 survives reconnects (not this process), and keeps the order; what was refused can be given again when
        `on_room` is called. `on_delivered` is called after the broker's PUBACK, on the port's thread as a rule
        (QoS 0: after it was sent). ValueError for a topic that can't be published to.
        """
        message = Outgoing(topic, payload, qos, retain, correlation, content_type, on_delivered)
        if qos == 0:
            return self._linked and len(_deliveries(self._client)) < MAX_UNSENT and self._send(message)
        taken = self._outbox.put(message)
        self._refused |= not taken
        return taken

    def _may_hand_over(self) -> bool:
        return not _deliveries(self._client).full

    def _hand_over(self, message: Outgoing) -> None:
        if not self._send(message):
            log.error("%s: a message of %d bytes can't be sent, and is dropped", message.topic, len(message.payload))

    def _send(self, message: Outgoing) -> bool:
        client, qos = self._client, message.qos
        deliveries = _deliveries(client)
        properties = self._publish_properties(message.correlation, message.content_type)
        with deliveries.handing_over():
            sent = client.publish(message.topic, message.payload, qos, message.retain, properties)
            taken = sent.rc == MQTTErrorCode.MQTT_ERR_SUCCESS or (qos > 0 and sent.rc == MQTTErrorCode.MQTT_ERR_NO_CONN)
            if taken:
                deliveries.expect(sent.mid, qos, message.on_delivered)
        return taken

    def _moved_on(self) -> None:
        """The broker has taken something: more can follow, out and in."""
        self._outbox.pump()
        self._acks.release()
        if self._refused and not self._outbox and not _deliveries(self._client):
            self._refused = False
            self._handlers.on_room()

    def subscribe(self, pattern: str) -> None:
        """Have messages that match brought to `on_message` at QoS 1, now and after every reconnect."""
        self._filters |= {pattern}
        if self._linked:
            self._send_subscribe(self._client, [pattern])

    def unsubscribe(self, pattern: str) -> None:
        """The reverse of subscribe."""
        self._filters -= {pattern}
        if self._linked:
            self._client.unsubscribe(pattern)

    # --- the client and its connection

    def _make_client(self) -> paho.Client:
        modern = self._protocol == MQTTProtocolVersion.MQTTv5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"llmasos-{self._topics.site}-{self._topics.node}",
            clean_session=None if modern else False,
            userdata=Deliveries(IN_FLIGHT),
            protocol=self._protocol,
            manual_ack=True,
        )
        client.suppress_exceptions = True  # a handler's bug is logged, and must not end the thread
        client.on_log = self._on_log
        client.on_socket_open = _on_socket_open
        client.reconnect_delay_set(1, 60)
        client.will_set(self._topics.status, self._will, qos=1, retain=True)
        if self._endpoint.user is not None:
            client.username_pw_set(self._endpoint.user, self._endpoint.password)
        if self._endpoint.tls:
            try:
                client.tls_set(ca_certs=self._endpoint.ca_file)
            except OSError as error:
                raise ConfigError(f"mqtt.ca_file: {self._endpoint.ca_file}: {error}") from None
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    def _open(self, client: paho.Client) -> None:
        host, port = self._endpoint.host, self._endpoint.port
        if self._protocol == MQTTProtocolVersion.MQTTv5:
            wishes = _properties(PacketTypes.CONNECT)
            wishes.SessionExpiryInterval = SESSION_EXPIRY_S
            wishes.ReceiveMaximum = RECEIVE_MAXIMUM
            wishes.MaximumPacketSize = MAX_PACKET
            client.connect_async(host, port, KEEPALIVE_S, clean_start=False, properties=wishes)
        else:
            client.connect_async(host, port, KEEPALIVE_S)
        client.loop_start()

    def _fall_back(self) -> None:
        """Go on with MQTT 3.1.1; what was published meanwhile moves to the new client."""
        with self._switch:
            if self._stopping:
                return
            self._protocol = MQTTProtocolVersion.MQTTv311
            old, self._client = self._client, self._make_client()
            old.loop_stop()
            for message in old.drop_out_messages():
                then = _deliveries(old).take(message.mid)
                self.publish(
                    message.topic, bytes(message.payload), message.qos, retain=message.retain, on_delivered=then
                )
            self._open(self._client)

    def _say(self, trouble: str) -> None:
        """Log what keeps us from the broker, once until it changes."""
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning("%s:%d: %s; trying again", self._endpoint.host, self._endpoint.port, trouble)

    # --- paho's callbacks: on its thread

    def _on_connect(
        self, client: paho.Client, _: object, flags: paho.ConnectFlags, reason: ReasonCode, granted: Properties | None
    ) -> None:
        if reason.is_failure:
            if reason.value == UNSUPPORTED_PROTOCOL and self._protocol == MQTTProtocolVersion.MQTTv5:
                threading.Thread(target=self._fall_back, name="mqtt-fall-back", daemon=True).start()
            self._say(f"the broker refuses us: {reason}")
            return
        self._trouble = ""
        self._acks.open()
        self._linked = True
        wanted = [self._topics.requests, *sorted(self._filters)]
        if getattr(granted, "SharedSubscriptionAvailable", 1):
            wanted.append(self._topics.shared_requests)
        self._link_mid = self._send_subscribe(client, wanted)

    def _on_connect_fail(self, client: paho.Client, _: object) -> None:
        self._say(f"no connection: {sys.exception()}")  # paho calls this while it handles the error

    def _on_disconnect(
        self, client: paho.Client, deliveries: Deliveries, _: object, reason: ReasonCode, __: object
    ) -> None:
        self._acks.close()
        deliveries.lose_unsent()
        self._outbox.pump()
        if self._linked:
            self._linked = False
            if not self._stopping:
                self._say(f"the connection is lost: {reason}")
            self._handlers.on_link(False)

    def _on_subscribe(self, client: paho.Client, _: object, mid: int, reasons: list[ReasonCode], __: object) -> None:
        for reason in reasons:
            if reason.is_failure:
                log.error("the broker refuses a subscription (%s): check its ACL for this node", reason)
        if mid == self._link_mid:
            log.info("connected to %s:%d", self._endpoint.host, self._endpoint.port)
            self._handlers.on_link(True)

    def _on_publish(self, client: paho.Client, deliveries: Deliveries, mid: int, reason: ReasonCode, _: object) -> None:
        if reason.is_failure:
            log.error("the broker refuses a message (%s): check its ACL for this node", reason)
        deliveries.acknowledged(mid)
        self._moved_on()

    def _on_log(self, client: paho.Client, _: object, level: int, text: str) -> None:
        """What paho says: a line for each packet (dropped here), and its errors."""
        if level in (LogLevel.MQTT_LOG_ERR, LogLevel.MQTT_LOG_WARNING) and not self._stopping:
            log.warning("paho: %s", text)

    def _on_message(self, client: paho.Client, _: object, message: paho.MQTTMessage) -> None:
        ack = self._acks.take(message.mid) if message.qos else _nothing
        try:
            self._dispatch(message, ack)
        except Exception:
            # Left without PUBACK, it would hold up all that came after it.
            log.exception("a message could not be handled, and is dropped")
            ack()

    def _dispatch(self, message: paho.MQTTMessage, ack: Acknowledge) -> None:
        caller = self._topics.parse_request(message.topic)
        if caller is None:
            if any(matches(pattern, message.topic) for pattern in self._filters):
                self._handlers.on_message(message.topic, bytes(message.payload), message.retain, ack)
            else:
                ack()
        elif message.retain:
            log.warning("%s: retained requests are ignored", message.topic)
            ack()
        else:
            self._handlers.on_request(_incoming(*caller, message, ack))

    # --- packets

    def _send_puback(self, mid: int) -> None:
        self._client.ack(mid, 1)

    def _send_subscribe(self, client: paho.Client, patterns: list[str]) -> int | None:
        """One SUBSCRIBE for all; returns its id."""
        if self._protocol != MQTTProtocolVersion.MQTTv5:
            return client.subscribe([(pattern, 1) for pattern in patterns])[1]
        # Retained requests are not wanted, and one that is published now keeps its flag, so that it shows.
        never = SubscribeOptions.RETAIN_DO_NOT_SEND
        request = SubscribeOptions(1, retainAsPublished=True, retainHandling=never)
        ours = (self._topics.requests, self._topics.shared_requests)
        return client.subscribe([(each, request if each in ours else SubscribeOptions(1)) for each in patterns])[1]

    def _publish_properties(self, correlation: bytes | None, content_type: str | None) -> Properties | None:
        if self._protocol != MQTTProtocolVersion.MQTTv5 or (correlation is None and content_type is None):
            return None
        properties = _properties(PacketTypes.PUBLISH)
        if correlation is not None:
            properties.CorrelationData = correlation
        if content_type is not None:
            properties.ContentType = content_type
        return properties


def _incoming(client: str, op: str, message: paho.MQTTMessage, ack: Acknowledge) -> Incoming:
    """The request in a PUBLISH; what MQTT 3.1.1 has no properties for is None."""
    sent = message.properties
    return Incoming(
        client=client,
        op=op,
        payload=bytes(message.payload),
        qos=message.qos,
        response_topic=getattr(sent, "ResponseTopic", None),
        correlation=getattr(sent, "CorrelationData", None),
        expiry_s=getattr(sent, "MessageExpiryInterval", None),
        ack=ack,
    )


def _on_socket_open(client: paho.Client, _: object, connection: object) -> None:
    """Send small packets at once: a PUBACK held back by Nagle's algorithm costs its receiver 40 ms."""
    if isinstance(connection, socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]  # paho leaves it without annotations


def _deliveries(client: paho.Client) -> Deliveries:
    kept = client.user_data_get()
    if not isinstance(kept, Deliveries):
        raise Panic("mqtt: a client without its deliveries")
    return kept


def _nothing() -> None:
    """The acknowledgement of a message that needs none."""
