"""One HTTP connection: HTTP/1.1 by h11 (this is its only import) over a non-blocking socket.

Requests are read on the server's thread. Answers are written by whoever has them, on any thread, so that a piece of a
stream costs its sender one system call and wakes nobody.
"""

import contextlib
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from http import HTTPStatus
from typing import Final, Protocol

import h11

from llmasos_edge.errors import BadRequest, LLMasOSError, QueueFull, ShuttingDown

MAX_HEAD: Final = 16 * 1024  # bytes of a request line with its headers
MAX_BODY: Final = 1024 * 1024
MAX_BACKLOG: Final = 256 * 1024  # bytes that wait for a reader before it is dropped
MAX_DISCARDED: Final = 8 * 1024 * 1024  # bytes that are read past after a refusal
REQUEST_S: Final = 30.0  # for a whole request, from its first byte
IDLE_S: Final = 60.0  # between two requests
DRAIN_S: Final = 30.0  # for the rest of an answer
LINGER_S: Final = 2.0  # for the peer to see the end: closing at once would throw away what it has not read yet
GONE: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

Headers = Sequence[tuple[str, str]]
Answer = tuple[int, Headers, bytes]  # status, headers, body
log = logging.getLogger(__name__)


class Server(Protocol):
    """What a connection needs of its server. All but `finished` and `listen` is called on the server's thread."""

    def refusal(self, error: LLMasOSError, status: int | None) -> Answer:
        """An error as an answer, with this status if its own does not say it."""

    def finished(self, connection: "Connection") -> None: ...

    def listen(self, connection: "Connection", events: int) -> None: ...

    def receive(self, count: int) -> None:
        """So many bytes of bodies more, or fewer. Raises QueueFull."""

    def take(self, exchange: "Exchange") -> None: ...

    def forget(self, connection: "Connection", received: int) -> None: ...


class Exchange:
    """One request and its answer: `respond`, or `begin`, any number of `send`, `end`. From any thread; never blocks.

    What comes after the end, or after the peer has gone, is ignored. `on_hang_up` is called once, on the server's
    thread, if the peer goes before the answer is whole; if that has happened already, when it is set.
    """

    def __init__(self, connection: "Connection", request: h11.Request, body: bytes) -> None:
        self.method = request.method.decode()
        self.target = request.target.decode()
        self.body = body
        self._headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        self._connection = connection
        self._on_hang_up: Callable[[], None] | None = None
        self.gone = False

    def header(self, name: str) -> str:
        """The value of a header, by its name in small letters; empty if it is not there."""
        return self._headers.get(name, "")

    @property
    def on_hang_up(self) -> Callable[[], None] | None:
        return self._on_hang_up

    @on_hang_up.setter
    def on_hang_up(self, notify: Callable[[], None]) -> None:
        with self._connection.lock:
            self._on_hang_up = notify
            too_late = self.gone
        if too_late:
            notify()

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer with all of it."""
        self._connection.write(self, *_whole_answer(status, headers, body, head_only=self.method == "HEAD"))

    def begin(self, headers: Headers, data: bytes) -> None:
        """Answer piece by piece; the head goes out with the first."""
        self._connection.write(self, h11.Response(status_code=200, headers=list(headers), reason="OK"), h11.Data(data))

    def send(self, data: bytes) -> None:
        self._connection.write(self, h11.Data(data))

    def end(self, data: bytes) -> None:
        """The last piece."""
        self._connection.write(self, h11.Data(data), h11.EndOfMessage())

    def hung_up(self) -> None:
        """The peer has gone, or was sent away. On the server's thread."""
        with self._connection.lock:
            self.gone, notify = True, self._on_hang_up
        if notify is not None:
            notify()


class Stage(Enum):
    """What a connection is at."""

    READING = auto()  # a request, or the wait for one
    ANSWERING = auto()  # its peer is not read: more requests wait in the socket
    LEAVING = auto()  # nothing more is said, and what still comes is read past


LISTENS_FOR: Final = {
    Stage.READING: select.EPOLLIN,
    Stage.ANSWERING: select.EPOLLRDHUP,
    Stage.LEAVING: select.EPOLLIN,
}


class Connection:
    """One client. `deadline` is when the server gives it up: None while it waits for us."""

    def __init__(self, server: Server, peer: socket.socket) -> None:
        self.lock = threading.Lock()
        self.deadline: float | None = time.monotonic() + REQUEST_S
        self._server, self._socket = server, peer
        self._protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._stage = Stage.READING
        self._idle = True
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._discarded = 0
        self._backlog = bytearray()
        self._exchange: Exchange | None = None
        self._closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    # ---- from any thread

    def write(self, exchange: Exchange, *events: h11.Event) -> None:
        """Part of an answer that is under way; with its end, the next request may come."""
        with self.lock:
            if exchange is not self._exchange:
                return
            try:
                self._push(*events)
            except h11.LocalProtocolError:  # a bug of ours, which must not take the writer's thread with it
                log.exception("http: an answer that is none")
                self._shut(socket.SHUT_RDWR)
                return
            if self._protocol.our_state is h11.SEND_BODY:
                return
            self._exchange = None
        self._server.finished(self)

    def _push(self, *events: h11.Event) -> None:
        """Send now what the socket takes now; the rest waits for the server's thread."""
        data = b"".join(self._protocol.send(event) or b"" for event in events)
        if not self._backlog:
            data = data[self._put(data) :]
            if not data:
                return
        if len(self._backlog) > MAX_BACKLOG:
            log.warning("http: dropped a client that does not read what it asked for")
            self._shut(socket.SHUT_RDWR)
            return
        waiting = bool(self._backlog)
        self._backlog += data
        if not waiting:
            self._listen()

    def _put(self, data: bytes | bytearray) -> int:
        """How many bytes are dealt with: all of them when nobody is there to read."""
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            self._shut(socket.SHUT_RDWR)
            return len(data)

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(how)

    def _listen(self) -> None:
        self._server.listen(self, LISTENS_FOR[self._stage] | (select.EPOLLOUT if self._backlog else 0))

    # ---- on the server's thread

    def ready(self, events: int) -> None:
        """The socket has something for us, or takes something, or has come to its end."""
        if events & select.EPOLLOUT:
            self._drain()
        if self._stage is Stage.ANSWERING:
            if events & GONE:
                self.close()
        elif events & (select.EPOLLIN | GONE):
            self._read()

    def proceed(self) -> None:
        """An answer is whole: once it is sent, the next request may come, or the peer is left."""
        with self.lock:
            if self._exchange is not None or self._closed or self._stage is not Stage.ANSWERING:
                return
            if self._backlog:
                self.deadline = time.monotonic() + DRAIN_S
                return
            if self._protocol.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                self._leave()
                return
            self._protocol.start_next_cycle()
            self._stage, self._idle, self.deadline = Stage.READING, True, time.monotonic() + IDLE_S
            self._listen()
        self._advance(b"")

    def expire(self, now: float) -> None:
        if self.deadline is None or now < self.deadline:
            return
        if self._stage is Stage.READING and not self._idle:
            self._refuse(BadRequest(f"request: it was not whole after {REQUEST_S:.0f} s"), 408)
        else:
            self.close()

    def close(self) -> None:
        with self.lock:
            if self._closed:
                return
            self._closed, exchange, self._exchange = True, self._exchange, None
            self._server.forget(self, len(self._body))
            self._socket.close()
        if exchange is not None:
            exchange.hung_up()

    def stop(self) -> None:
        """Where an answer is still to come, say that the node stops; then close."""
        exchange = self._exchange
        if exchange is not None and self._protocol.our_state is h11.SEND_RESPONSE:
            error = ShuttingDown("the node is stopping: try again when it is back", retry_after_ms=5000)
            exchange.respond(*self._server.refusal(error, None))
        self.close()

    def _drain(self) -> None:
        with self.lock:
            del self._backlog[: self._put(self._backlog[: 1 << 16])]
            if self._backlog:
                return
            self._listen()
            if self._stage is Stage.LEAVING:
                self._shut(socket.SHUT_WR)
        self.proceed()

    def _read(self) -> None:
        try:
            data = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if self._stage is Stage.LEAVING:
            self._discarded += len(data)
        if not data or self._discarded > MAX_DISCARDED:
            self.close()
        elif self._stage is Stage.READING:
            self._advance(data)

    def _advance(self, data: bytes) -> None:
        """Take the protocol as far as it comes: to a whole request, or to where more is needed."""
        try:
            with self.lock:
                if data:
                    self._protocol.receive_data(data)
                exchange = self._next_request()
        except h11.RemoteProtocolError as error:
            self._refuse(BadRequest(f"request: not HTTP/1.1 as it should be: {error}"), error.error_status_hint)
        except BadRequest as error:
            self._refuse(error, 413)
        except QueueFull as error:
            self._refuse(error, 503)
        else:
            if exchange is not None:
                self._server.take(exchange)

    def _next_request(self) -> Exchange | None:
        """Raises BadRequest for a body that is too large, QueueFull for one too many."""
        while (event := self._protocol.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Request):
                self._request = event
                _check_length(_announced(event))
            elif isinstance(event, h11.Data):
                _check_length(len(self._body) + len(event.data))
                self._body += event.data
                self._server.receive(len(event.data))
            elif isinstance(event, h11.EndOfMessage) and self._request is not None:
                return self._whole(self._request)
        if self._idle and (self._request is not None or self._protocol.trailing_data[0]):
            self._idle, self.deadline = False, time.monotonic() + REQUEST_S
        if self._protocol.they_are_waiting_for_100_continue:
            self._push(h11.InformationalResponse(status_code=100, headers=[]))
        return None

    def _whole(self, request: h11.Request) -> Exchange:
        self._exchange = Exchange(self, request, bytes(self._body))
        self._server.receive(-len(self._body))
        self._request, self._body = None, bytearray()
        self._stage, self.deadline = Stage.ANSWERING, None
        self._listen()
        return self._exchange

    def _refuse(self, error: LLMasOSError, status: int) -> None:
        """Answer what is no request, and leave: what follows it can't be read."""
        status, headers, body = self._server.refusal(error, status)
        head_only = self._request is not None and self._request.method == b"HEAD"
        with self.lock:
            if self._protocol.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                closing = [*headers, ("connection", "close")]
                self._push(*_whole_answer(status, closing, body, head_only=head_only))
            self._server.receive(-len(self._body))
            self._body.clear()
            self._leave()

    def _leave(self) -> None:
        self._stage, self.deadline = Stage.LEAVING, time.monotonic() + LINGER_S
        if not self._backlog:
            self._shut(socket.SHUT_WR)
        self._listen()


def _whole_answer(status: int, headers: Headers, body: bytes, *, head_only: bool) -> tuple[h11.Event, ...]:
    reason = HTTPStatus(status).phrase
    head = h11.Response(status_code=status, headers=[*headers, ("content-length", str(len(body)))], reason=reason)
    return (head, h11.EndOfMessage()) if head_only else (head, h11.Data(body), h11.EndOfMessage())


def _announced(request: h11.Request) -> int:
    """The length that the request says its body has."""
    return max((int(value) for name, value in request.headers if name == b"content-length"), default=0)


def _check_length(length: int) -> None:
    if length > MAX_BODY:
        raise BadRequest(f"body: {length} bytes, of at most {MAX_BODY}")


def farewell(answer: Answer) -> bytes:
    """An answer to a peer that is not listened to."""
    status, headers, body = answer
    protocol = h11.Connection(h11.SERVER)
    events = _whole_answer(status, [*headers, ("connection", "close")], body, head_only=False)
    return b"".join(protocol.send(event) or b"" for event in events)
