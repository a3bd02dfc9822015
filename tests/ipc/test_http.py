"""Tests of the HTTP server, against real sockets: what it answers, what it refuses, and that nothing is left."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse

import pytest

from llmasos_edge.errors import BadRequest, ConfigError, LLMasOSError
from llmasos_edge.ipc import http, http_connection
from llmasos_edge.ipc.http import HttpServer
from llmasos_edge.ipc.http_connection import MAX_BODY, Answer, Exchange

WAIT_S = 5.0
LIMIT = 20
TEXT = [("content-type", "text/plain")]


def refusal(error: LLMasOSError, status: int | None) -> Answer:
    return status or 400, [("x-code", error.code)], error.message.encode()


class Node:
    """A handler that answers by what the path says, and keeps exchanges that it does not answer."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.arrived = threading.Semaphore(0)
        self.gone = threading.Semaphore(0)

    def handle(self, exchange: Exchange) -> None:
        match exchange.target:
            case "/echo":
                exchange.respond(200, TEXT, exchange.body or b"hello")
            case "/refuse":
                raise BadRequest("no such thing")
            case "/break":
                raise ZeroDivisionError("a bug")
            case _:
                exchange.on_hang_up = self.gone.release
                self.exchanges.append(exchange)
                self.arrived.release()

    def next(self) -> Exchange:
        assert self.arrived.acquire(timeout=WAIT_S)
        return self.exchanges[-1]


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def server(node: Node) -> Iterator[HttpServer]:
    server = HttpServer(("127.0.0.1", 0), node.handle, refusal, LIMIT)
    server.start()
    yield server
    server.stop()


def dial(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), WAIT_S)


@pytest.fixture
def client(server: HttpServer) -> Iterator[HTTPConnection]:
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)) as client:
        yield client


def ask(client: HTTPConnection, target: str, body: bytes | None = None, method: str = "POST") -> tuple[int, bytes]:
    client.request(method, target, body)
    answer = client.getresponse()
    return answer.status, answer.read()


def read_all(link: socket.socket) -> bytes:
    """What comes until the server closes."""
    data = b""
    while chunk := link.recv(1 << 16):
        data += chunk
    return data


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_requests_follow_one_another(client: HTTPConnection) -> None:
    """On one connection; errors of a handler, a bug among them, end only their own request."""
    assert ask(client, "/echo", b"one") == (200, b"one")
    assert ask(client, "/refuse") == (400, b"no such thing")
    assert ask(client, "/break") == (400, b"a bug of the node: its log has the details")
    assert ask(client, "/echo", b"x" * MAX_BODY) == (200, b"x" * MAX_BODY)
    assert ask(client, "/echo", method="HEAD") == (200, b"")
    assert ask(client, "/echo", b"two") == (200, b"two")


def test_a_stream_comes_as_it_is_sent(client: HTTPConnection, node: Node) -> None:
    """Piece by piece, and the connection goes on after it."""
    client.request("GET", "/hold")
    exchange = node.next()
    exchange.begin(TEXT, b"a")
    answer = client.getresponse()
    assert answer.read1(1) == b"a"
    exchange.send(b"bc")
    assert answer.read1(2) == b"bc"
    exchange.end(b"d")
    exchange.send(b"after the end")
    assert answer.read() == b"d"
    assert ask(client, "/echo", b"two") == (200, b"two")
    assert not node.gone.acquire(blocking=False)


def test_pieces_and_pipelines(server: HttpServer) -> None:
    """A request may come byte by byte, and several at once; they are answered in order."""
    with closing(dial(server)) as link:
        for byte in b"POST /echo HTTP/1.1\r\nHost: x\r\ncontent-length: 3\r\n\r\nabc":
            link.send(bytes([byte]))
        link.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        link.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = read_all(link)
    assert data.count(b"200 OK") == 5
    assert data.index(b"abc") < data.index(b"hello")


def test_old_http_and_upgrades(server: HttpServer) -> None:
    """HTTP/1.0 gets an answer and the end of the connection; who wants another protocol gets this one."""
    with closing(dial(server)) as link:
        link.sendall(b"GET /echo HTTP/1.0\r\n\r\n")
        assert read_all(link).endswith(b"\r\n\r\nhello")
    with closing(dial(server)) as link:
        upgrade = b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        link.sendall(upgrade + b"CONNECT /refuse HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_all(link).startswith(b"HTTP/1.1 200 OK")


def test_who_waits_for_a_nod_gets_one(server: HttpServer) -> None:
    """Expect: 100-continue, as curl sends it with large bodies; not if the body is too large anyway."""
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\ncontent-length: %d\r\n\r\n"
    with closing(dial(server)) as link:
        link.sendall(head % 3)
        assert link.recv(1000).startswith(b"HTTP/1.1 100")
        link.sendall(b"abc")
        assert read_all(link).endswith(b"abc")
    with closing(dial(server)) as link:
        link.sendall(head % (MAX_BODY + 1))
        assert read_all(link).startswith(b"HTTP/1.1 413")


def test_who_hangs_up_is_missed(server: HttpServer, node: Node) -> None:
    """While it waits, in the middle of a stream, and with a reset; later answers go nowhere."""
    for begun in (False, True):
        link = dial(server)
        link.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        exchange = node.next()
        if begun:
            exchange.begin(TEXT, b"a")
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        link.close()
        assert node.gone.acquire(timeout=WAIT_S)
        assert exchange.gone
        exchange.send(b"nobody reads it")
        exchange.respond(200, TEXT, b"nor this")
    late: list[bool] = []
    exchange.on_hang_up = lambda: late.append(True)
    assert late == [True]


def test_pipelined_requests_do_not_hide_the_end(server: HttpServer, node: Node) -> None:
    """A client that has sent more, which is not read yet, is missed too."""
    link = dial(server)
    link.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n" * 9)
    node.next()
    link.close()
    assert node.gone.acquire(timeout=WAIT_S)


@pytest.mark.parametrize(
    ("garbage", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\ncontent-length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\ncontent-length: 99999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\ncontent-length: 99999999999\r\n\r\n" + b"x" * 3_000_000, 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\n\r\n200000\r\n" + b"x" * 0x200000, 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 100_000, 431),
        (b"GET /" + b"x" * 200_000, 431),
    ],
)  # fmt: skip
def test_garbage_is_answered_and_left(server: HttpServer, client: HTTPConnection, garbage: bytes, status: int) -> None:
    """With what was wrong, although the client goes on sending; the next client is served."""
    with closing(dial(server)) as link:
        link.sendall(garbage)
        data = read_all(link)
    assert data.startswith(b"HTTP/1.1 %d " % status), data
    assert b"\r\nx-code: bad_request\r\n" in data
    assert ask(client, "/echo", b"x") == (200, b"x")


def test_half_a_request_and_gone(server: HttpServer, client: HTTPConnection) -> None:
    """It leaves nothing behind."""
    for part in (b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\ncontent-length: 9\r\n\r\nabc"):
        with closing(dial(server)) as link:
            link.sendall(part)
    until(lambda: not server._connections)
    assert server._receiving == 0
    assert ask(client, "/echo", b"x") == (200, b"x")


def test_who_is_slow_is_not_waited_for(
    server: HttpServer, client: HTTPConnection, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request byte by byte is ended with an answer, silence without one; a client that waits for us is kept."""
    monkeypatch.setattr(http_connection, "REQUEST_S", 0.3)
    monkeypatch.setattr(http_connection, "IDLE_S", 0.3)
    monkeypatch.setattr(http, "TICK_S", 0.05)
    client.request("GET", "/hold")
    held = node.next()
    with closing(dial(server)) as silent, closing(dial(server)) as slow, closing(dial(server)) as idle:
        idle.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(1 << 16).endswith(b"hello")
        end = time.monotonic() + WAIT_S
        slow.setblocking(False)
        answer = b""
        while not answer and time.monotonic() < end:
            slow.send(b"G")
            time.sleep(0.02)
            try:
                answer = slow.recv(1 << 16)
            except BlockingIOError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert silent.recv(1) == b""
        assert idle.recv(1) == b""
    held.respond(200, TEXT, b"at last")
    assert client.getresponse().read() == b"at last"


def test_who_does_not_read_is_dropped(server: HttpServer, node: Node) -> None:
    """Once too much waits for it; until then all arrives, in order."""
    with closing(dial(server)) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        exchange = node.next()
        exchange.begin(TEXT, b"")
        for _ in range(400):
            exchange.send(b"x" * 65536)
        assert node.gone.acquire(timeout=WAIT_S)


def test_a_slow_reader_gets_it_all(server: HttpServer, node: Node) -> None:
    """What the socket does not take is sent when it does."""
    body = bytes(range(256)) * 40_000
    with closing(dial(server)) as link:
        link.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        node.next().respond(200, TEXT, body)
        answer = HTTPResponse(link)
        with closing(answer):
            answer.begin()
            assert answer.read() == body


def test_one_too_many_is_told(server: HttpServer) -> None:
    """And may come again when somebody has left."""
    links = [dial(server) for _ in range(LIMIT)]
    until(lambda: len(server._connections) == LIMIT)
    with closing(dial(server)) as link:
        data = read_all(link)
    assert data.startswith(b"HTTP/1.1 503 ")
    assert b"queue_full" in data
    for link in links:
        link.close()
    until(lambda: not server._connections)
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)) as client:
        assert ask(client, "/echo", b"x") == (200, b"x")


def test_all_bodies_together_are_bounded(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many large requests that never end don't fill the memory."""
    monkeypatch.setattr(http, "MAX_BODIES", 200_000)
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\ncontent-length: 150000\r\n\r\n"
    with closing(dial(server)) as first, closing(dial(server)) as second:
        first.sendall(head + b"x" * 149_999)
        until(lambda: server._receiving == 149_999)
        second.sendall(head + b"x" * 140_000)
        assert read_all(second).startswith(b"HTTP/1.1 503 ")
        first.sendall(b"x")
        assert first.recv(100).startswith(b"HTTP/1.1 200 ")
    assert server._receiving == 0


def test_many_streams_at_once(node: Node) -> None:
    """256 of them, each written by another thread than the one that reads them."""
    server = HttpServer(("127.0.0.1", 0), node.handle, refusal)
    server.start()
    links = [dial(server) for _ in range(256)]
    for number, link in enumerate(links):
        link.sendall(b"GET /hold/%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % number)
    until(lambda: len(node.exchanges) == 256)
    for exchange in node.exchanges:
        exchange.begin(TEXT, b"first ")
    for exchange in node.exchanges:
        exchange.end(exchange.target.encode())
    for number, link in enumerate(links):
        assert b"/hold/%d\r\n" % number in read_all(link)
        link.close()
    server.stop()


def test_the_end_is_told_to_who_waits(node: Node) -> None:
    """Who waits for an answer is told that the node stops; a stream ends."""
    server = HttpServer(("127.0.0.1", 0), node.handle, refusal)
    server.start()
    with closing(dial(server)) as waiting, closing(dial(server)) as reading, closing(dial(server)):
        waiting.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        node.next()
        reading.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        node.next().begin(TEXT, b"a")
        server.stop()
        assert b"x-code: shutting_down" in read_all(waiting)
        assert read_all(reading).endswith(b"a\r\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "203.0.113.7", "no-such-host.invalid"])
def test_an_address_that_can_not_be_had_is_named(server: HttpServer, node: Node, host: str) -> None:
    """Taken, or not this machine's."""
    with pytest.raises(ConfigError, match=f"http.listen: {host}:{server.port}: "):
        HttpServer((host, server.port), node.handle, refusal).start()


def test_an_answer_that_is_none_ends_only_its_connection(server: HttpServer, client: HTTPConnection) -> None:
    """A bug of ours, here a body where none may be, must not take the thread with it, which may be the kernel's."""
    with closing(dial(server)) as link:
        link.sendall(b"CONNECT /echo HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"hello" not in read_all(link)
    assert ask(client, "/echo", b"x") == (200, b"x")


def test_headers_are_found_by_their_small_names(client: HTTPConnection, node: Node) -> None:
    """Whatever bytes they hold."""
    client.request("GET", "/hold", headers={"X-Thing": "caf\u00e9"})
    exchange = node.next()
    assert (exchange.header("x-thing"), exchange.header("x-other")) == ("caf\u00e9", "")
    exchange.respond(200, TEXT, json.dumps("x").encode())
    client.getresponse().read()
