"""Tests of the control socket's server, against real sockets."""

import gc
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from llmasos_edge.errors import BadRequest, ConfigError
from llmasos_edge.ipc.control import BACKLOG_LIMIT, LINE_LIMIT, Call, ControlServer

WAIT_S = 5.0


class Node:
    """A handler that keeps the calls it gets, and answers the ones whose name says how."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.arrived = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)
        self.cancellations = 0

    def handle(self, call: Call) -> None:
        if call.name == "hold":
            call.on_cancel = self.note_cancel
        self.calls.append(call)
        self.arrived.release()
        if call.name == "echo":
            call.event({"n": 1})
            call.result(call.args)
        if call.name == "refuse":
            raise BadRequest("no such thing")
        if call.name == "break":
            raise ZeroDivisionError("a bug")

    def note_cancel(self) -> None:
        self.cancellations += 1
        self.cancelled.release()

    def next_call(self) -> Call:
        assert self.arrived.acquire(timeout=WAIT_S)
        return self.calls[-1]


def resources() -> tuple[int, int]:
    gc.collect()
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def path(tmp_path: Path, node: Node) -> Iterator[Path]:
    """The socket of a running server that must leave no thread, descriptor or file behind."""
    before = resources()
    path = tmp_path / "control.sock"
    server = ControlServer(path, node.handle, connection_limit=128)
    server.start()
    yield path
    server.stop()
    assert not path.exists()
    assert resources() == before


def dial(path: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(WAIT_S)
    link.connect(str(path))
    return link


def read_lines(link: socket.socket, count: int) -> list[Any]:
    data = b""
    while data.count(b"\n") < count and (chunk := link.recv(1 << 16)):
        data += chunk
    return [json.loads(line) for line in data.splitlines()]


def ask(link: socket.socket, name: str, count: int = 1, **args: object) -> list[Any]:
    link.sendall(json.dumps({"call": name, "args": args}).encode() + b"\n")
    return read_lines(link, count)


ECHO = b'{"call": "echo", "args": {"a": 1}}\n'
ECHOED = [{"event": {"n": 1}}, {"result": {"a": 1}}]


def test_calls_follow_one_another(path: Path) -> None:
    """A connection takes the next call once the last one is answered."""
    with closing(dial(path)) as link:
        for _ in range(3):
            assert ask(link, "echo", 2, a=1) == ECHOED


def test_call_in_pieces(path: Path) -> None:
    """A request may arrive byte by byte, and two may arrive at once."""
    with closing(dial(path)) as link:
        for byte in ECHO:
            link.send(bytes([byte]))
        assert read_lines(link, 2) == ECHOED
        link.sendall(b"\n" + ECHO + ECHO)
        assert read_lines(link, 4) == ECHOED * 2


def test_file_rights_and_peer(path: Path, node: Node) -> None:
    """The socket is the owner's and the group's, and a call says who makes it."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with closing(dial(path)) as link:
        ask(link, "echo", 2)
    assert node.calls[0].peer == (os.getpid(), os.getuid(), os.getgid())


@pytest.mark.parametrize(
    "garbage",
    [
        b"{",
        b"null",
        b"[]",
        b'{"args": {}}',
        b'{"call": 1}',
        b'{"call": "echo", "args": []}',
        b'{"call": "echo", "more": 1}',
        b'{"call": "\xff"}',
        b"\x00\xff\xfe",
        b'{"call": "echo", "args": {"a": ' + b"[" * 100_000,
    ],
)
def test_garbage_is_refused_and_the_connection_lives(path: Path, garbage: bytes) -> None:
    """What is not a call is a bad_request, and the next call works."""
    with closing(dial(path)) as link:
        link.sendall(garbage + b"\n")
        (answer,) = read_lines(link, 1)
        assert answer["error"]["code"] == "bad_request"
        assert ask(link, "echo", 2, a=1) == ECHOED


def test_huge_line(path: Path) -> None:
    """A line over the limit is refused while it still comes, and the connection closed."""
    with closing(dial(path)) as link:
        with pytest.raises(BrokenPipeError):
            link.sendall(b"x" * 10 * LINE_LIMIT)
        (answer,) = read_lines(link, 1)
        assert str(LINE_LIMIT) in answer["error"]["message"]


def test_large_line_within_the_limit(path: Path) -> None:
    """A request just under the limit is taken whole."""
    text = "x" * (LINE_LIMIT - 100)
    with closing(dial(path)) as link:
        assert ask(link, "echo", 2, text=text)[1] == {"result": {"text": text}}


def test_handler_errors(path: Path) -> None:
    """An error that the handler raises is the answer, and a bug in it is `internal`."""
    with closing(dial(path)) as link:
        assert ask(link, "refuse") == [{"error": {"code": "bad_request", "message": "no such thing"}}]
        (answer,) = ask(link, "break")
        assert answer["error"] == {"code": "internal", "message": "break: ZeroDivisionError: a bug"}
        assert ask(link, "echo", 2, a=1) == ECHOED


def test_one_call_at_a_time(path: Path, node: Node) -> None:
    """A second call before the first is answered ends the connection and cancels the first."""
    with closing(dial(path)) as link:
        link.sendall(b'{"call": "hold"}\n' + ECHO)
        answers = read_lines(link, 2)
    assert [answer["error"]["code"] for answer in answers] == ["bad_request"]
    assert node.cancelled.acquire(timeout=WAIT_S)


def test_disconnect_cancels_once(path: Path, node: Node) -> None:
    """When the peer goes in the middle of a call, on_cancel is called once, and later answers are ignored."""
    link = dial(path)
    link.sendall(b'{"call": "hold"}\n')
    call = node.next_call()
    call.event({"delta": "a"})
    link.close()
    assert node.cancelled.acquire(timeout=WAIT_S)
    assert call.answered
    call.event({"delta": "b"})
    call.result({})
    assert node.cancellations == 1


def test_on_cancel_set_too_late(path: Path, node: Node) -> None:
    """A handler that sets on_cancel after the peer has gone hears of it at once."""
    link = dial(path)
    link.sendall(b'{"call": "hold"}\n')
    call = node.next_call()
    link.close()
    assert node.cancelled.acquire(timeout=WAIT_S)
    call.on_cancel = node.note_cancel
    assert node.cancellations == 2


def test_answered_call_is_not_cancelled(path: Path, node: Node) -> None:
    """A peer that leaves after its answer cancels nothing, and a second answer is not sent."""
    with closing(dial(path)) as link:
        link.sendall(b'{"call": "hold"}\n')
        call = node.next_call()
        call.result(1)
        call.result(2)
        assert read_lines(link, 1) == [{"result": 1}]
        assert ask(link, "echo", 2, a=1) == ECHOED
    assert node.cancellations == 0


def test_late_reader_gets_everything(path: Path, node: Node) -> None:
    """Events that the socket does not take at once wait, never block the sender, and arrive in order."""
    with closing(dial(path)) as link:
        link.sendall(b'{"call": "hold"}\n')
        call = node.next_call()
        for _ in range(2):
            for number in range(300):
                call.event({"n": number, "pad": "x" * 10_000})
            answers = read_lines(link, 300)
            assert [answer["event"]["n"] for answer in answers] == list(range(300))
        call.result("end")
        assert read_lines(link, 1) == [{"result": "end"}]


def test_slow_reader_is_dropped(path: Path, node: Node) -> None:
    """A peer that does not read what it asked for is cut off, and its call cancelled."""
    with closing(dial(path)) as link:
        link.sendall(b'{"call": "hold"}\n')
        call = node.next_call()
        pad = "x" * 100_000
        for _ in range(BACKLOG_LIMIT // 100_000 + 10):
            call.event({"pad": pad})
        assert node.cancelled.acquire(timeout=WAIT_S)
        assert node.cancellations == 1


def test_events_from_many_threads(path: Path, node: Node) -> None:
    """Lines that several threads send at once are never mixed."""
    with closing(dial(path)) as link:
        link.sendall(b'{"call": "hold"}\n')
        call = node.next_call()

        def send(name: int) -> None:
            for _ in range(50):
                call.event({"name": name, "pad": "x" * 5_000})

        threads = [threading.Thread(target=send, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        answers = read_lines(link, 200)
        for thread in threads:
            thread.join()
        assert sorted(answer["event"]["name"] for answer in answers) == sorted(list(range(4)) * 50)


def test_many_connections(path: Path) -> None:
    """A hundred clients at once are all answered."""
    links = [dial(path) for _ in range(100)]
    for link in links:
        link.sendall(ECHO)
    assert all(read_lines(link, 2) == ECHOED for link in links)
    for link in links:
        link.close()


def test_too_many_connections(tmp_path: Path, node: Node) -> None:
    """One connection more than the limit is answered queue_full; when one leaves there is room again."""
    server = ControlServer(tmp_path / "s", node.handle, connection_limit=1)
    server.start()
    try:
        with closing(dial(tmp_path / "s")) as first:
            ask(first, "echo", 2)
            with closing(dial(tmp_path / "s")) as second:
                assert read_lines(second, 2)[0]["error"]["code"] == "queue_full"
        deadline = time.monotonic() + WAIT_S
        while "error" in first_answer(tmp_path / "s"):  # until the server has seen the first one leave
            assert time.monotonic() < deadline
    finally:
        server.stop()


def first_answer(path: Path) -> Any:
    with closing(dial(path)) as link:
        with suppress(BrokenPipeError):
            link.sendall(ECHO)
        return read_lines(link, 1)[0]


def test_stop_answers_open_calls(tmp_path: Path, node: Node) -> None:
    """Stopping tells open calls `shutting_down` and cancels them."""
    server = ControlServer(tmp_path / "s", node.handle)
    server.start()
    with closing(dial(tmp_path / "s")) as link:
        link.sendall(b'{"call": "hold"}\n')
        node.next_call()
        server.stop()
        (answer,) = read_lines(link, 2)
    assert answer["error"]["code"] == "shutting_down"
    assert node.cancellations == 1


def test_stale_socket_is_replaced(tmp_path: Path, node: Node) -> None:
    """The file that a killed daemon leaves does not stop the next one."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    server = ControlServer(tmp_path / "s", node.handle)
    server.start()
    with closing(dial(tmp_path / "s")) as link:
        assert ask(link, "echo", 2, a=1) == ECHOED
    server.stop()


def make_file(path: Path) -> None:
    path.write_text("precious")


def make_nothing(path: Path) -> None:
    path.parent.rmdir()


@pytest.mark.parametrize(("prepare", "says"), [(make_file, "not a socket"), (make_nothing, "No such file")])
def test_path_that_cannot_be_used(tmp_path: Path, node: Node, prepare: Callable[[Path], None], says: str) -> None:
    """A file in the way, or a missing folder, is an error that says so, and nothing is removed."""
    path = tmp_path / "folder" / "s"
    path.parent.mkdir()
    prepare(path)
    before = resources()
    with pytest.raises(ConfigError, match=says):
        ControlServer(path, node.handle).start()
    assert resources() == before


def test_second_server_is_refused(path: Path, node: Node) -> None:
    """A socket that a living daemon serves is left to it."""
    with pytest.raises(ConfigError, match="another daemon"):
        ControlServer(path, node.handle).start()
    with closing(dial(path)) as link:
        assert ask(link, "echo", 2, a=1) == ECHOED
