"""A peer that serves OpenAI's API: its process, on a free port of loopback."""

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from benchmarks.node import STATE, STOP_S

HOST: Final = "127.0.0.1"
READY_S: Final = 120.0


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


class PeerServer:
    """A context: the server runs inside it. `health`: what it answers as soon as it can be asked."""

    name: str
    health: str

    def __init__(self, port: int, command: Sequence[object], environment: Mapping[str, str] | None = None) -> None:
        self.port = port
        self._command = [str(word) for word in command]
        self._environment = os.environ | (environment or {})
        self._log = STATE / f"{self.name}.log"

    def __enter__(self) -> Self:
        STATE.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )
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
                if self._healthy():
                    return
            except OSError:
                pass  # it does not listen yet
            time.sleep(0.1)
        sys.exit(f"benchmarks: {self.name} is not ready; its log:\n{self._log.read_text(errors='replace')[-2000:]}")

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=READY_S)
        connection.request("GET", self.health)
        return connection.getresponse().status == http.client.OK

    def _end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
