"""The peer of sessions and prefixes: llama-server, with its caches, on a free port of loopback."""

import http.client
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.chat import Answered, Messages
from benchmarks.node import STATE, model_file
from benchmarks.peer_server import HOST, PeerServer, free_port

PATIENCE_S: Final = 600.0
# As here: all cores, q8_0 KV, flash attention, one KV buffer for all, steps of 512, weights mapped as they are.
ALIKE: Final = ("-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0", "-b", "512", "-ub", "512", "--kv-unified", "--no-repack")


class LlamaServer(PeerServer):
    """`flags`: slots, cells and caches."""

    name = "llama-server"
    health = "/health"

    def __init__(self, binary: Path, flags: Sequence[str]) -> None:
        port = free_port()
        self.flags = ("-t", str(len(os.sched_getaffinity(0))), *ALIKE, *flags)
        place = ("-m", model_file(), "--host", HOST, "--port", port, "--no-ui")
        super().__init__(port, (binary, *place, *self.flags))

    def __str__(self) -> str:
        return f"{self.name} {' '.join(self.flags)}"

    def chat(self, messages: Messages, tokens: int) -> Answered:
        """A whole conversation's next answer."""
        return stream_chat(self.port, messages, tokens)


def stream_chat(port: int, messages: Messages, tokens: int) -> Answered:
    """Ends the benchmark if there is no whole answer."""
    body = {"messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True}
    sent = time.perf_counter()
    response = _request(port, "POST", "/v1/chat/completions", body)
    if response.status != http.client.OK:
        sys.exit(f"benchmarks: llama-server refuses a request: {response.read()[:500]!r}")
    first, text, timings = 0.0, "", dict[str, int]()
    for event in _events(response):
        for choice in event.get("choices", ()):
            said = choice["delta"].get("content")
            if said and not first:
                first = time.perf_counter()
            text += said or ""
        timings = event.get("timings", timings)
    if not timings:
        sys.exit(f"benchmarks: llama-server broke off an answer: see its log in {STATE}")
    return Answered(
        first_ms=((first or time.perf_counter()) - sent) * 1000,
        text=text,
        prompt=timings["prompt_n"] + timings["cache_n"],
        cached=timings["cache_n"],
        generated=timings["predicted_n"],
    )


def _request(port: int, method: str, path: str, body: dict[str, object] | None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)
    connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
    return connection.getresponse()


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The server-sent events of a streamed answer."""
    for line in response:
        _, _, data = line.decode().strip().partition("data: ")
        if data.startswith("{"):
            event: dict[str, Any] = json.loads(data)
            yield event
