"""The HTTP server: one thread for all connections, which reads and closes them."""

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from llmasos_edge.errors import ConfigError, Internal, LLMasOSError, QueueFull
from llmasos_edge.ipc.http_connection import Answer, Connection, Exchange, farewell

MAX_BODIES: Final = 16 * 1024 * 1024  # bytes of all bodies that are being received
CONNECTION_LIMIT: Final = 512
VANISHED_S: Final = 30  # without a sign of life from the peer's system
TICK_S: Final = 1.0
STACK_BYTES: Final = 512 * 1024

Refusal = Callable[[LLMasOSError, int | None], Answer]
log = logging.getLogger(__name__)


class HttpServer:
    """Serves from start() to stop(). `handle` runs on its thread and must not block; `refusal` gives errors a shape."""

    def __init__(
        self,
        address: tuple[str, int],
        handle: Callable[[Exchange], None],
        refusal: Refusal,
        limit: int = CONNECTION_LIMIT,
    ) -> None:
        self.refusal = refusal
        self._address, self._handle, self._limit = address, handle, limit
        self._connections: dict[int, Connection] = {}
        self._finished: deque[Connection] = deque()
        self._receiving = 0
        self._stopping = False

    def start(self) -> None:
        """Raises ConfigError when the address is taken, or is not this machine's."""
        self._listener = _listening(*self._address)
        self.port = int(self._listener.getsockname()[1])
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)
        usual = threading.stack_size(STACK_BYTES)
        try:
            self._thread = threading.Thread(target=self._run, name="http", daemon=True)
            self._thread.start()
        finally:
            threading.stack_size(usual)

    def stop(self) -> None:
        """Answer what is open, hang up, and join the thread."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._wake)
        self._listener.close()

    # ---- for connections

    def finished(self, connection: Connection) -> None:
        """From any thread: an answer is whole."""
        self._finished.append(connection)
        os.eventfd_write(self._wake, 1)

    def listen(self, connection: Connection, events: int) -> None:
        self._epoll.modify(connection, events)

    def receive(self, count: int) -> None:
        self._receiving += count
        if count > 0 and self._receiving > MAX_BODIES:
            raise QueueFull("too many large requests are coming in at once", retry_after_ms=1000)

    def forget(self, connection: Connection, received: int) -> None:
        self._receiving -= received
        del self._connections[connection.fileno()]
        self._epoll.unregister(connection)

    def take(self, exchange: Exchange) -> None:
        """A request is whole."""
        try:
            self._handle(exchange)
        except LLMasOSError as error:
            exchange.respond(*self.refusal(error, None))
        except Exception:  # a server's edge: a bug in one request must not end the others
            log.exception("http: %s %s failed", exchange.method, exchange.target[:200])
            exchange.respond(*self.refusal(Internal("a bug of the node: its log has the details"), None))

    # ---- the thread

    def _run(self) -> None:
        while not self._stopping:
            for descriptor, events in self._epoll.poll(TICK_S if self._connections else None):
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor == self._wake:
                    os.eventfd_read(self._wake)
                elif connection := self._connections.get(descriptor):
                    connection.ready(events)
            while self._finished:
                self._finished.popleft().proceed()
            now = time.monotonic()
            for connection in tuple(self._connections.values()):
                connection.expire(now)
        for connection in tuple(self._connections.values()):
            connection.stop()

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError as error:  # out of descriptors, most likely: they come back as clients leave
            log.warning("http: cannot accept: %s", error)
            threading.Event().wait(0.1)
            return
        if len(self._connections) >= self._limit:
            self._turn_away(peer)
            return
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, VANISHED_S // 2)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, VANISHED_S // 6)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_S * 1000)
        connection = Connection(self, peer)
        self._connections[peer.fileno()] = connection
        self._epoll.register(peer, select.EPOLLIN)

    def _turn_away(self, peer: socket.socket) -> None:
        error = QueueFull(f"all {self._limit} HTTP connections are taken: try again later", retry_after_ms=1000)
        with contextlib.closing(peer), contextlib.suppress(OSError):
            peer.send(farewell(self.refusal(error, 503)), socket.MSG_NOSIGNAL)


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
    except OSError as error:
        raise ConfigError(f"http.listen: {host}:{port}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise ConfigError(f"http.listen: {host}:{port}: {error.strerror}; choose another port, or 0 for any") from error
    listener.setblocking(False)
    return listener
