"""The control socket's client: one connection to a node, one call at a time, no threads."""

import json
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llmasos_edge.errors import BadRequest, Internal, LLMasOSError, Panic, Unreachable, from_wire


class Client:
    """A connection to the node behind `path`. Raises Unreachable when there is none, with what to do about it.

    With `timeout_s`, a node that is silent for so long counts as unreachable; without, a call takes its time.
    """

    def __init__(self, path: Path, timeout_s: float | None = None) -> None:
        self._path = path
        self._socket = _connect(path, timeout_s)
        self._lines = self._socket.makefile("rb", buffering=1 << 16)
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def node_pid(self) -> int:
        """The daemon's process id, as the kernel knows it (SO_PEERCRED, unix(7))."""
        pid: int = struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid

    def close(self) -> None:
        """Hang up; the node cancels a call that is still open."""
        self._lines.close()
        self._socket.close()

    def call(self, name: str, /, **args: object) -> Any:
        """The call's result, its events left out. Raises the node's LLMasOSError."""
        return self.stream(name, **args).finish()

    def stream(self, name: str, /, **args: object) -> "Stream":
        """Send a call; its events are iterated, then `result` is there."""
        if self._open:
            raise Panic(f"Client.stream: {name} while another call is open")
        try:
            line = json.dumps({"call": name, "args": args}, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError as error:
            raise BadRequest(f"{name}: an argument is not valid UTF-8 text: {error}") from error
        self._open = True
        self._send(line + b"\n")
        return Stream(self._receive)

    def _send(self, line: bytes) -> None:
        try:
            self._socket.sendall(line)
        except BrokenPipeError:
            pass  # the node refused and hung up: why, is in what it sent before
        except OSError as error:
            raise self._lost(error) from error

    def _receive(self) -> tuple[str, Any]:
        """The next line: event, result or error, with its value."""
        try:
            line = self._lines.readline()
        except OSError as error:
            raise self._lost(error) from error
        if not line.endswith(b"\n"):
            raise self._lost("it closed the connection before it had answered")
        try:
            ((kind, shape),) = json.loads(line).items()
        except (ValueError, AttributeError) as error:
            raise Internal(f"{self._path} answers with something that is no line of a node: {line[:80]!r}") from error
        self._open = kind == "event"
        return kind, shape

    def _lost(self, why: object) -> Unreachable:
        return Unreachable(f"lost the node at {self._path}: {why}; see `llmasos status` and the daemon's log")


class Stream(Iterator[Any]):
    """The events of one call; when they end, `result` is the call's result. An error of the node is raised."""

    def __init__(self, receive: Callable[[], tuple[str, Any]]) -> None:
        self._receive = receive
        self.result: Any = None
        self._ended = False

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        kind, shape = self._receive()
        if kind == "event":
            return shape
        self._ended = True
        if kind == "error":
            raise from_wire(shape)
        self.result = shape
        raise StopIteration

    def finish(self) -> Any:
        """The result, once the remaining events are over."""
        for _ in self:
            pass
        return self.result


def _connect(path: Path, timeout_s: float | None) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(timeout_s)
    try:
        link.connect(str(path))
    except OSError as error:
        link.close()
        raise _unreachable(path, error) from error
    return link


def _unreachable(path: Path, error: OSError) -> LLMasOSError:
    advice = "start one with `systemctl start llmasosd` or `llmasosd --config NODE.yaml`, or give --socket PATH"
    if isinstance(error, PermissionError):
        return Unreachable(f"no permission to open {path}: use sudo, or join the group that owns it")
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return Unreachable(f"no node at {path}: {advice}")
    return Unreachable(f"no node at {path} ({error}): {advice}")
