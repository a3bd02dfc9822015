"""The peer of sessions and prefixes: llama-server, with its caches, on a free port of loopback."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from benchmarks.chat import Answered, Messages
from benchmarks.node import STATE, STOP_S, model_file
from benchmarks.stream import Deltas

HOST: Final = "127.0.0.1"
LOG: Final = STATE / "llama-server.log"
READY_S: Final = 120.0
PATIENCE_S: Final = 600.0
# As here: all cores, q8_0 KV, flash attention, one KV buffer for all, steps of 512, weights mapped as they are.
ALIKE: Final = ("-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0", "-b", "512", "-ub", "512", "--kv-unified", "--no-repack")


class LlamaServer:
    """A context: the server runs inside it. `flags`: slots, cells and caches."""

    def __init__(self, binary: Path, flags: Sequence[str]) -> None:
        with socket.socket() as free:
            free.bind((HOST, 0))
            self._port = free.getsockname()[1]
        self.flags = ("-t", str(len(os.sched_getaffinity(0))), *ALIKE, *flags)
        place = ("-m", str(model_file()), "--host", HOST, "--port", str(self._port), "--no-ui")
        self._command = [str(binary), *place, *self.flags]

    def __enter__(self) -> Self:
        STATE.mkdir(parents=True, exist_ok=True)
        with LOG.open("wb") as log:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _wait(self) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if _request(self._port, "GET", "/health", None).status == http.client.OK:
                    return
            except OSError:
                pass  # it does not listen yet
            time.sleep(0.1)
        sys.exit(f"benchmarks: llama-server is not ready; its log:\n{LOG.read_text(errors='replace')[-2000:]}")

    def _end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def chat(self, messages: Messages, tokens: int) -> Answered:
        """A whole conversation's next answer."""
        return stream_chat(self._port, messages, tokens)

    def deltas(self, prompt: str, tokens: int) -> Deltas:
        """What comes of a prompt that is no conversation."""
        return _deltas(self._port, prompt, tokens)


def _deltas(port: int, prompt: str, tokens: int) -> Deltas:
    body: dict[str, object] = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "stream": True}
    with _request(port, "POST", "/completion", body) as response:
        if response.status != http.client.OK:
            sys.exit(f"benchmarks: llama-server refuses a request: {response.read()[:500]!r}")
        for event in _events(response):
            if event.get("content"):
                yield


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
        sys.exit(f"benchmarks: llama-server broke off an answer: see {LOG}")
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
