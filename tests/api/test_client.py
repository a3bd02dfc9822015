"""Tests of the control socket's client, against the real server and against servers that misbehave."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos_edge.api.client import Client
from llmasos_edge.errors import BadRequest, Internal, NoMemory, Panic, QueueFull, Unreachable
from llmasos_edge.ipc.control import LINE_LIMIT, Call, ControlServer


def handle(call: Call) -> None:
    if call.name == "refuse":
        raise NoMemory("too large", details={"needed": 2, "budget": 1}, retry_after_ms=7)
    for number in range(3):
        call.event({"n": number})
    call.result(call.args)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    server = ControlServer(tmp_path / "control.sock", handle)
    server.start()
    yield tmp_path / "control.sock"
    server.stop()


def serve_once(path: Path, answer: bytes) -> threading.Thread:
    """A server that reads something, answers these bytes, and hangs up."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        link, _ = listener.accept()
        link.recv(1 << 16)
        link.sendall(answer)
        link.close()
        listener.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_call_and_stream(path: Path) -> None:
    """Events are iterated as they come, the result follows, and the connection serves the next call."""
    with Client(path) as client:
        stream = client.stream("x", name="n", **{"class": "batch"})
        assert [event["n"] for event in stream] == [0, 1, 2]
        assert stream.result == {"name": "n", "class": "batch"}
        assert client.call("y", text="ü\u2028\n") == {"text": "ü\u2028\n"}
        assert next(client.stream("z")) == {"n": 0}


def test_error_is_raised(path: Path) -> None:
    """An error comes back as the class it was, with its details, and the connection lives."""
    with Client(path) as client:
        with pytest.raises(NoMemory, match="too large") as caught:
            client.call("refuse")
        assert (caught.value.details, caught.value.retry_after_ms) == ({"needed": 2, "budget": 1}, 7)
        assert client.call("x") == {}


def test_one_call_at_a_time(path: Path) -> None:
    """A second call while events of the first are still to come is a bug of the caller's."""
    with Client(path) as client:
        first = client.stream("x")
        with pytest.raises(Panic):
            client.call("y")
        assert first.finish() == {}
        assert list(first) == []


def test_request_that_is_too_long(path: Path) -> None:
    """The node's refusal is told although the node hung up while the line was still being sent."""
    with Client(path) as client, pytest.raises(BadRequest, match=str(LINE_LIMIT)):
        client.call("x", text="x" * 2 * LINE_LIMIT)


def test_text_that_is_not_unicode(path: Path) -> None:
    """Bytes that are no text, as a shell may pass them, are refused before they are sent."""
    with Client(path) as client:
        with pytest.raises(BadRequest, match="UTF-8"):
            client.call("x", text="\udcff")
        assert client.call("x") == {}


def test_nobody_there(tmp_path: Path) -> None:
    """No socket, a socket nobody serves, and a path that is too long all say which path and what to do."""
    dead = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX) as unserved:
        unserved.bind(str(dead))
    for path in (tmp_path / "none", dead, tmp_path / ("x" * 200)):
        with pytest.raises(Unreachable, match="llmasosd --config") as caught:
            Client(path)
        assert str(path) in caught.value.message


def test_connection_refused_for_want_of_room(tmp_path: Path) -> None:
    """A node that has no room for a connection says so, whether before or after the call is sent."""
    server = ControlServer(tmp_path / "s", handle, connection_limit=0)
    server.start()
    try:
        with Client(tmp_path / "s") as client, pytest.raises(QueueFull):
            client.call("x")
    finally:
        server.stop()


@pytest.mark.parametrize("answer", [b"", b'{"event": 1}\n{"resu'])
def test_node_dies_in_mid_call(tmp_path: Path, answer: bytes) -> None:
    """A node that goes away before it has answered is unreachable, not an empty answer."""
    thread = serve_once(tmp_path / "s", answer)
    with Client(tmp_path / "s") as client, pytest.raises(Unreachable, match="before it had answered"):
        client.call("x")
    thread.join()


@pytest.mark.parametrize("answer", [b"hello\n", b"[]\n", b"{}\n", b'{"a": 1, "b": 2}\n', b"\xff\n"])
def test_something_else_answers(tmp_path: Path, answer: bytes) -> None:
    """A server that speaks something else is told as such."""
    thread = serve_once(tmp_path / "s", answer)
    with Client(tmp_path / "s") as client, pytest.raises(Internal, match="no line of a node"):
        client.call("x")
    thread.join()


def test_silent_node(tmp_path: Path) -> None:
    """With a timeout, a node that never answers is unreachable."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with Client(tmp_path / "s", timeout_s=0.05) as client, pytest.raises(Unreachable, match="timed out"):
            client.call("x")
