"""Tests of how the benchmarks read llama-server's streamed answers; the server is a small one of the test's own."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from benchmarks.llama_server import stream_chat
from benchmarks.peer_server import HOST

ANSWER = b"""\
data: {"choices":[{"delta":{"role":"assistant","content":null}}]}

data: {"choices":[{"delta":{"content":"A "}}]}

data: {"choices":[{"delta":{"content":"sea."}}]}

data: {"choices":[{"delta":{}}],"timings":{"prompt_n":4,"cache_n":30,"predicted_n":2}}

data: [DONE]

"""


class Server(BaseHTTPRequestHandler):
    answer = ANSWER

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer((HOST, 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_an_answer_is_put_together(port: int) -> None:
    """Its text, what was found in the cache, and what was computed."""
    answered = stream_chat(port, [{"role": "user", "content": "Where?"}], 2)
    assert (answered.text, answered.prompt, answered.cached, answered.generated) == ("A sea.", 34, 30, 2)
    assert answered.first_ms > 0


def test_an_answer_without_an_end_is_no_figure(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that dies in mid-answer ends the benchmark."""
    monkeypatch.setattr(Server, "answer", ANSWER[:120])
    with pytest.raises(SystemExit, match="broke off"):
        stream_chat(port, [{"role": "user", "content": "Where?"}], 2)
