"""Tests of the load generator's streams against a small server of the test's own."""

import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from benchmarks.peer_server import HOST
from benchmarks.streams import Chat, Streams

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n\n'
WORD = b'data: {"choices":[{"delta":{"content":"sea "}}]}\n\n'
DONE = b"data: [DONE]\n\n"
PATIENCE_S = 10.0
Answer = Callable[[socket.socket], None]
Serve = Callable[[Answer], int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Has the next request answered by a function; gives the port."""
    with socket.create_server((HOST, 0)) as listening:
        threads = []

        def run(answer: Answer) -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                answer(connection)

        def begin(answer: Answer) -> int:
            threads.append(threading.Thread(target=run, args=(answer,)))
            threads[-1].start()
            return int(listening.getsockname()[1])

        yield begin
        for thread in threads:
            thread.join()


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def ask(port: int, *, stream: bool = True) -> Chat:
    """One chat, to its end."""
    streams = Streams(port, "any")
    chat = streams.begin("Where?", 2, stream=stream)
    while not chat.ended:
        assert streams.turn(PATIENCE_S) in ([], [chat])
    streams.close()
    return chat


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_stream_may_come_in_pieces_of_any_size(serve: Serve, size: int) -> None:
    """Its text is counted once, wherever the pieces and the chunks end."""
    body = ROLE + WORD + WORD + DONE
    whole = HEAD + chunk(body[:90]) + chunk(body[90:]) + chunk(b"")

    def answer(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(whole), size):
            connection.sendall(whole[start : start + size])

    chat = ask(serve(answer))
    assert (chat.characters, chat.failure) == (8, "")
    assert chat.sent < chat.first <= chat.ended


def test_an_answer_that_is_not_streamed_has_its_tokens(serve: Serve) -> None:
    """They are what the server says."""
    told = {"choices": [{"message": {"content": "A sea."}}], "usage": {"completion_tokens": 3}}
    body = json.dumps(told).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    chat = ask(serve(lambda connection: connection.sendall(head + body)), stream=False)
    assert (chat.tokens, chat.characters, chat.failure) == (3, 6, "")


@pytest.mark.parametrize(
    ("whole", "why"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "503"),
        (HEAD + chunk(b'data: {"error":{"message":"engine_failed"}}\n\n'), "engine_failed"),
        (HEAD + chunk(DONE) + chunk(b""), "without a text"),
    ],
)
def test_a_failure_is_told(serve: Serve, whole: bytes, why: str) -> None:
    """A refusal, an error in mid-stream, and an answer that says nothing."""
    assert why in ask(serve(lambda connection: connection.sendall(whole))).failure


def test_nobody_listens() -> None:
    """That is a failure too, not an end of the benchmark."""
    with socket.create_server((HOST, 0)) as gone:
        port = int(gone.getsockname()[1])
    assert "refused" in ask(port).failure.lower()
