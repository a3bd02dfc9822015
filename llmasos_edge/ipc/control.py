"""The control socket's server: JSON lines over a Unix stream socket, one call at a time on a connection."""

import contextlib
import logging
import os
import select
import socket
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from llmasos_edge.errors import BadRequest, ConfigError, Internal, LLMasOSError, QueueFull, ShuttingDown

LINE_LIMIT = 2 * 1024 * 1024  # bytes of one request
BACKLOG_LIMIT = 4 * 1024 * 1024  # bytes that wait for a reader before it is dropped
CONNECTION_LIMIT = 512
STACK_BYTES = 512 * 1024
JOIN_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


class Peer(NamedTuple):
    """Who is at the other end, as the kernel knows it (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int
    gid: int


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """A line from a client."""

    call: str
    args: dict[str, object] = {}


class Call:
    """One call: any number of events, then one answer. Callable from any thread; never blocks.

    What is sent after the answer, or after the peer has gone, is ignored. `on_cancel` is called once, on the
    connection's thread, when the call ends without an answer; if that has happened already, when it is set.
    """

    def __init__(self, name: str, args: dict[str, object], peer: Peer, send: Callable[[bytes], None]) -> None:
        self.name = name
        self.args = args
        self.peer = peer
        self._send = send
        self._lock = threading.Lock()
        self._open = True
        self._cancelled = False
        self._on_cancel: Callable[[], None] | None = None

    @property
    def answered(self) -> bool:
        """True after the answer, and after the peer has gone."""
        return not self._open

    @property
    def on_cancel(self) -> Callable[[], None] | None:
        return self._on_cancel

    @on_cancel.setter
    def on_cancel(self, notify: Callable[[], None]) -> None:
        with self._lock:
            self._on_cancel = notify
            too_late = self._cancelled
        if too_late:
            notify()

    def event(self, shape: object) -> None:
        """Send something that happens before the answer (a JSON value or msgspec struct)."""
        line = _line({"event": shape})
        with self._lock:
            if self._open:
                self._send(line)

    def result(self, shape: object) -> None:
        """Answer the call."""
        self._answer({"result": shape})

    def error(self, error: LLMasOSError) -> None:
        """Refuse the call, or say how it failed."""
        self._answer({"error": error.wire()})

    def cancel(self, reason: LLMasOSError | None = None) -> None:
        """End the call without its handler: the peer has gone, or (with a reason to send) the server stops."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            self._cancelled = True
            notify = self._on_cancel
            if reason is not None:
                self._send(_line({"error": reason.wire()}))
        if notify is not None:
            notify()

    def _answer(self, shape: dict[str, object]) -> None:
        line = _line(shape)
        with self._lock:
            if self._open:
                self._open = False  # before the send: the next call may arrive at once
                self._send(line)


class Connection:
    """One client: its thread reads, everybody writes, and only its thread closes."""

    def __init__(self, peer_socket: socket.socket, handle: Callable[[Call], None], writable: select.epoll) -> None:
        self._socket = peer_socket
        self._handle = handle
        self._writable = writable
        self._peer = _peer(peer_socket)
        self._lock = threading.Lock()
        self._backlog = bytearray()
        self._closed = False
        self._call: Call | None = None

    def fileno(self) -> int:
        return self._socket.fileno()

    def serve(self) -> None:
        """Read calls until the peer goes; then cancel the open one."""
        try:
            self._read_lines()
        finally:
            with self._lock:
                self._closed = True
                self._backlog.clear()
                self._socket.close()
            if self._call is not None:
                self._call.cancel()

    def send(self, line: bytes) -> None:
        """Send now what the socket takes now; the rest waits for the writer."""
        with self._lock:
            if self._closed:
                return
            if not self._backlog:
                line = line[self._push(line) :]
                if not line:
                    return
                self._writable.register(self._socket, select.EPOLLOUT)
            self._backlog += line
            if len(self._backlog) > BACKLOG_LIMIT:
                log.warning("control: dropped pid %d, which does not read what it asked for", self._peer.pid)
                self.hang_up()

    def drain(self) -> None:
        """Send what waits, as far as the socket takes it."""
        with self._lock:
            if not self._backlog:
                return
            del self._backlog[: self._push(bytes(self._backlog[: 1 << 16]))]
            if not self._backlog:
                self._writable.unregister(self._socket)

    def hang_up(self) -> None:
        """End the conversation; the reading thread sees its end and closes."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Tell the open call that the node stops, and hang up."""
        if self._call is not None:
            self._call.cancel(ShuttingDown("the node is stopping: try again when it is back", retry_after_ms=5000))
        with self._lock:
            if not self._closed:
                self.hang_up()

    def _push(self, data: bytes) -> int:
        """How many bytes are dealt with; all of them when nobody is there to read."""
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            self.hang_up()
            return len(data)

    def _read_lines(self) -> None:
        rest = bytearray()
        while chunk := self._receive():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.strip() and not self._take(line):
                    return
            if len(rest) > LINE_LIMIT:
                self._refuse(f"a request is one line of at most {LINE_LIMIT} bytes")
                return

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 16)
        except OSError:
            return b""

    def _take(self, line: bytearray) -> bool:
        """Start the call on this line; False when the conversation cannot go on."""
        if self._call is not None and not self._call.answered:
            self._refuse("one call at a time on a connection: wait for the answer, or open another connection")
            return False
        try:
            request = msgspec.json.decode(line, type=Request)
        except (ValueError, RecursionError) as error:
            self._refuse(f'not a call, {{"call": NAME, "args": {{...}}}}: {error}')
            return True
        self._call = Call(request.call, request.args, self._peer, self.send)
        self._run(self._call)
        return True

    def _run(self, call: Call) -> None:
        try:
            self._handle(call)
        except LLMasOSError as error:
            call.error(error)
        except Exception as error:  # a server's edge: a bug in one call must not end the others
            log.exception("control: %s failed", call.name)
            call.error(Internal(f"{call.name}: {type(error).__name__}: {error}"))

    def _refuse(self, message: str) -> None:
        self.send(_line({"error": BadRequest(f"control socket: {message}").wire()}))


class ControlServer:
    """Serves `path` (mode 0660) from start() to stop().

    `handle` runs on the connection's thread and must not block: while it does, the loss of its peer is not noticed.
    What it raises becomes the call's error.
    """

    def __init__(self, path: Path, handle: Callable[[Call], None], connection_limit: int = CONNECTION_LIMIT) -> None:
        self._path = path
        self._handle = handle
        self._limit = connection_limit
        self._lock = threading.Lock()
        self._connections: dict[Connection, threading.Thread] = {}
        self._stopping = False

    def start(self) -> None:
        """Listen. Raises ConfigError when the path is taken or cannot be made."""
        self._listener = _listen(self._path)
        self._writable = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._writable.register(self._wake, select.EPOLLIN)
        self._writer = _start(self._drain_backlogs, "control-write")
        self._acceptor = _start(self._accept, "control-accept")

    def stop(self) -> None:
        """Answer open calls with `shutting_down`, hang up, join all threads, and remove the socket file."""
        self._stopping = True
        self._path.unlink(missing_ok=True)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections:
            connection.stop()
        for thread in connections.values():
            thread.join(JOIN_TIMEOUT_S)
        os.eventfd_write(self._wake, 1)
        self._writer.join()
        self._writable.close()
        os.close(self._wake)

    def _accept(self) -> None:
        while not self._stopping:
            try:
                peer_socket, _ = self._listener.accept()
            except OSError as error:
                if not self._stopping:  # out of descriptors, most likely: they come back as clients leave
                    log.warning("control: cannot accept: %s", error)
                    threading.Event().wait(0.1)
                continue
            self._admit(peer_socket)

    def _admit(self, peer_socket: socket.socket) -> None:
        connection = Connection(peer_socket, self._handle, self._writable)
        with self._lock:
            if len(self._connections) < self._limit:
                self._connections[connection] = _start(lambda: self._serve(connection), "control-read")
                return
        refusal = QueueFull(f"all {self._limit} connections of the control socket are taken", retry_after_ms=1000)
        connection.send(_line({"error": refusal.wire()}))
        peer_socket.close()

    def _serve(self, connection: Connection) -> None:
        try:
            connection.serve()
        finally:
            with self._lock:
                del self._connections[connection]

    def _drain_backlogs(self) -> None:
        ready: set[int] = set()
        while self._wake not in ready:
            ready = {fd for fd, _ in self._writable.poll()}
            with self._lock:
                waiting = [connection for connection in self._connections if connection.fileno() in ready]
            for connection in waiting:
                connection.drain()


def _line(shape: dict[str, object]) -> bytes:
    return msgspec.json.encode(shape) + b"\n"


def _peer(peer_socket: socket.socket) -> Peer:
    return Peer(*struct.unpack("3i", peer_socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


def _listen(path: Path) -> socket.socket:
    """A listening socket in place of a stale one; ConfigError when somebody else's is there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        path.chmod(0o660)  # nobody can connect before listen(), so there is no moment with other rights
        listener.listen(CONNECTION_LIMIT)
    except OSError as error:
        listener.close()
        raise ConfigError(f"control socket {path}: {error}; choose another folder with --runtime") from error
    except ConfigError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"control socket {path}: a file that is not a socket is there; remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise ConfigError(f"control socket {path}: another daemon answers there; stop it, or give --runtime")


def _start(target: Callable[[], None], name: str) -> threading.Thread:
    """A started thread with a small stack, for there may be hundreds."""
    usual = threading.stack_size(STACK_BYTES)
    try:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
    finally:
        threading.stack_size(usual)
    return thread
