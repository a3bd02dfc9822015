"""Requests that come over MQTT, and where their replies go."""

import base64
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

import msgspec

from llmasos_edge.api.calls import OPS, Calls
from llmasos_edge.api.door import Arrival, Door
from llmasos_edge.api.ticket import Post, Reply
from llmasos_edge.errors import DeadlineExceeded, LLMasOSError, NotPermitted
from llmasos_edge.ipc.messages import (
    Accepted,
    CancelRequest,
    DoneReply,
    ErrorReply,
    Generation,
    Request,
    StreamDelta,
    StreamDone,
    decode_request,
    encode,
    salvage_id,
    salvage_reply_to,
)
from llmasos_edge.ipc.mqtt import Incoming
from llmasos_edge.ipc.topics import Topics, accepted, stream
from llmasos_edge.services.journal import Entry, Finished, Journal
from llmasos_edge.services.security import Caller, Security

STREAM_EVERY_S: Final = 0.05  # at most 20 stream messages a second
log = logging.getLogger(__name__)


class Publisher(Protocol):
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
    ) -> bool: ...


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the replies of one request go; kept in the journal with it."""

    topic: str
    stream: bool = False
    correlation: str | None = None  # base64

    @property
    def correlation_data(self) -> bytes | None:
        return base64.b64decode(self.correlation) if self.correlation is not None else None


class MqttWaiter:
    """One request's caller. Called on the kernel's or the journal's thread."""

    def __init__(
        self,
        route: Route,
        publisher: Publisher,
        delivered: Callable[[], None],
        *,
        durable: bool,
    ) -> None:
        self._route, self._publisher, self._delivered = route, publisher, delivered
        self._durable = durable
        self._seq, self._attempt = 0, 0
        self._held = ""
        self._sent_at = 0.0

    def __eq__(self, other: object) -> bool:
        """The same place to reply to: a repeat there is answered once."""
        return isinstance(other, MqttWaiter) and other._route == self._route

    __hash__ = None  # type: ignore[assignment]

    def accepted(self, message: Accepted) -> None:
        """The promise that there will be a reply: what never touches the disk (QoS 0) does not get it."""
        if self._durable:
            self._send(accepted(self._route.topic), encode(message), qos=1)

    def delta(self, text: Sequence[str], attempt: int) -> None:
        if not self._route.stream:
            return
        if attempt != self._attempt:
            self._seq, self._attempt, self._held = 0, attempt, ""
        self._held += "".join(text)
        if time.monotonic() - self._sent_at >= STREAM_EVERY_S:
            self._flush()

    def reply(self, _: Reply, encoded: bytes) -> None:
        if self._route.stream and self._attempt:
            self._flush()
            self._send(stream(self._route.topic), encode(StreamDone(seq=self._seq, done=True)))
        self._send(self._route.topic, encoded, qos=1, on_delivered=self._delivered)

    def _flush(self) -> None:
        if self._held:
            self._send(
                stream(self._route.topic), encode(StreamDelta(seq=self._seq, delta=self._held, attempt=self._attempt))
            )
            self._seq, self._held, self._sent_at = self._seq + 1, "", time.monotonic()

    def _send(self, topic: str, payload: bytes, qos: int = 0, on_delivered: Callable[[], None] | None = None) -> bool:
        return self._publisher.publish(
            topic,
            payload,
            qos,
            correlation=self._route.correlation_data,
            content_type="application/json",
            on_delivered=on_delivered,
        )


class MqttServer:
    """`on_request` is called on the MQTT thread; it decodes there, and posts the rest to the kernel's thread."""

    def __init__(
        self,
        *,
        door: Door,
        calls: Calls,
        journal: Journal,
        security: Security,
        topics: Topics,
        publisher: Callable[[], Publisher],
        post: Post,
    ) -> None:
        self._door, self._calls, self._journal = door, calls, journal
        self._security, self._topics, self._publisher, self._post = security, topics, publisher, post
        self._unnamed = 0

    def on_request(self, incoming: Incoming) -> None:
        try:
            caller = self._security.mqtt(incoming.client)
        except LLMasOSError as error:
            self._answer(Route(self._topics.result(incoming.client, "invalid")), ErrorReply(error=error.wire()))
            incoming.ack()
            return
        try:
            request = decode_request(incoming.op, incoming.payload)
        except LLMasOSError as error:
            self._cant_read(incoming, caller, error)
            return
        request_id = request.id or self._name()
        try:
            limit_ms = _expiry_ms(incoming)
            route = self._route(
                incoming, caller, request.reply_to, request_id, stream=getattr(request, "stream", False)
            )
        except LLMasOSError as error:
            self._answer(
                Route(self._topics.result(caller.client, request_id)), ErrorReply(id=request_id, error=error.wire())
            )
            incoming.ack()
            return
        if isinstance(request, Generation):
            arrival = self._arrival(incoming, request, caller, request_id, route, limit_ms)
            self._post(partial(self._door.arrive, arrival))
        else:
            self._post(partial(self._operate, incoming, request, caller, request_id, route))

    def resume(self, entry: Entry) -> None:
        """Take a request of the journal up again. On the kernel's thread."""
        route = msgspec.json.decode(entry.route, type=Route)
        caller = self._security.mqtt(entry.client)
        waiter = self._waiter(route, entry.client, entry.id)
        try:
            request = decode_request(entry.op, entry.body)
        except LLMasOSError as error:
            # Another version of the node took it. It ends here: nobody waits for ever.
            reply = ErrorReply(id=entry.id, task=entry.task, node=self._calls.node, error=error.wire())
            encoded = encode(reply)
            self._journal.finish(entry.client, entry.id, encoded, lambda _: waiter.reply(reply, encoded))
            return
        if isinstance(request, Generation):
            self._door.arrive(
                Arrival(entry.op, entry.body, request, caller, entry.id, waiter, durable=True, entry=entry)
            )

    def deliver(self, finished: Finished) -> None:
        """A reply that the broker did not acknowledge before the node ended, or could not take."""
        route = msgspec.json.decode(finished.route, type=Route)
        self._waiter(route, finished.client, finished.id).reply(ErrorReply(error={}), finished.reply)

    def deliver_again(self) -> None:
        """The publisher has delivered all that it took: what the journal still has, it had no room for."""

        def read(_: LLMasOSError | None) -> None:
            self._post(partial(self._calls.slow, self._journal.undelivered, again, failed))

        def again(undelivered: list[Finished]) -> None:
            for finished in undelivered:
                self.deliver(finished)

        def failed(error: LLMasOSError) -> None:
            log.error("%s", error.message)

        self._journal.barrier(read)  # after what was delivered is written down

    def _arrival(
        self,
        incoming: Incoming,
        request: Generation,
        caller: Caller,
        request_id: str,
        route: Route,
        limit_ms: int | None,
    ) -> Arrival:
        limits = [limit for limit in (request.deadline_ms, limit_ms) if limit is not None]
        return Arrival(
            op=incoming.op,
            body=incoming.payload,
            request=request,
            caller=caller,
            id=request_id,
            waiter=self._waiter(route, caller.client, request_id, durable=incoming.qos > 0),
            durable=incoming.qos > 0,
            route=msgspec.json.encode(route),
            deadline_ms=min(limits, default=None),
            ack=incoming.ack,
        )

    def _waiter(self, route: Route, client: str, request_id: str, *, durable: bool = True) -> MqttWaiter:
        delivered = partial(self._journal.delivered, client, request_id)
        return MqttWaiter(route, self._publisher(), delivered, durable=durable)

    def _route(
        self, incoming: Incoming, caller: Caller, reply_to: str | None, request_id: str, *, stream: bool
    ) -> Route:
        wanted = incoming.response_topic or reply_to
        topic = wanted or self._topics.result(caller.client, request_id)
        if wanted is not None and not self._topics.reply_topic_allowed(wanted, caller.client, caller.reply_topics):
            own = self._topics.result(caller.client, "#").removesuffix("#")
            raise NotPermitted(
                f"reply_to: {wanted[:200]!r} is not below {own}, nor listed for {caller.client} in the node file"
            )
        correlation = None if incoming.correlation is None else base64.b64encode(incoming.correlation).decode()
        return Route(topic, stream, correlation)

    def _cant_read(self, incoming: Incoming, caller: Caller, error: LLMasOSError) -> None:
        """An error for what can't be decoded goes where the request would have had it, as far as that can be told."""
        request_id = salvage_id(incoming.payload)
        try:
            route = self._route(
                incoming, caller, salvage_reply_to(incoming.payload), request_id or "invalid", stream=False
            )
        except NotPermitted:
            route = Route(self._topics.result(caller.client, request_id or "invalid"))
        self._answer(route, ErrorReply(id=request_id, error=error.wire()))
        incoming.ack()

    def _operate(self, incoming: Incoming, request: Request, caller: Caller, request_id: str, route: Route) -> None:
        """Ops that are no tasks."""

        def done(output: dict[str, object]) -> None:
            self._answer(route, DoneReply(id=request_id, node=self._calls.node, output=output))
            incoming.ack()

        def failed(error: LLMasOSError) -> None:
            self._answer(route, ErrorReply(id=request_id, node=self._calls.node, error=error.wire()))
            incoming.ack()

        try:
            if isinstance(request, CancelRequest):
                done(self._calls.cancel(caller, request.target))
            else:
                OPS[incoming.op](self._calls, caller, request, done, failed)
        except LLMasOSError as error:
            failed(error)

    def _answer(self, route: Route, reply: DoneReply | ErrorReply) -> None:
        self._publisher().publish(
            route.topic, encode(reply), 1, correlation=route.correlation_data, content_type="application/json"
        )

    def _name(self) -> str:
        self._unnamed += 1
        return f"{self._calls.boot}-r{self._unnamed}"


def _expiry_ms(incoming: Incoming) -> int | None:
    if incoming.expiry_s is None:
        return None
    if incoming.expiry_s <= 0:
        raise DeadlineExceeded("the message has expired")
    return incoming.expiry_s * 1000
