"""The demo's MQTT client: mosquitto's own mosquitto_pub and mosquitto_sub, as a device or a shell script has them."""

import json
import os
import select
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llmasos_edge.demo.failure import DemoFailed

SLICE_S: Final = 0.25  # how often a wait looks whether the node still lives
SEND_S: Final = 10.0
STOP_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Message:
    """What came: its topic, its decoded JSON, and when (time.monotonic)."""

    topic: str
    payload: Any
    at: float


class Wire:
    """A subscriber that runs as long as the demo, and a publisher for each message.

    `check` is called while nothing comes; it raises when waiting on makes no sense.
    """

    def __init__(self, port: int, filters: Sequence[str], check: Callable[[], None]) -> None:
        self.port: Final = port
        self._check = check
        options = [word for each in filters for word in ("-t", each)]
        self._subscriber = _spawn("mosquitto_sub", "-p", str(port), "-q", "1", "-v", *options)
        self._tail = b""
        self._messages: deque[Message] = deque()

    def publish(self, topic: str, payload: object) -> float:
        """Send it, and return once the broker has it; the moment at which it was given out (time.monotonic)."""
        command = ("mosquitto_pub", "-p", str(self.port), "-q", "1", "-t", topic, "-m", json.dumps(payload))
        sent_at = time.monotonic()
        publisher = _spawn(*command)
        try:
            said, _ = publisher.communicate(timeout=SEND_S)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"mosquitto_pub could not reach the broker within {SEND_S:.0f} s") from None
        finally:
            if publisher.poll() is None:
                publisher.kill()
                publisher.communicate()
        if publisher.returncode:
            raise DemoFailed(f"mosquitto_pub failed: {said.decode(errors='replace').strip()}")
        return sent_at

    def receive(self, deadline: float) -> Message | None:
        """The next message; None when there is none by `deadline` (time.monotonic)."""
        while not self._messages:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._pump(min(left, SLICE_S))
        return self._messages.popleft()

    def close(self) -> None:
        self._subscriber.terminate()
        try:
            self._subscriber.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self._subscriber.kill()
            self._subscriber.communicate()

    def _pump(self, timeout_s: float) -> None:
        output = self._subscriber.stdout
        if output is None or not select.select([output], [], [], timeout_s)[0]:
            self._check()
            return
        data = os.read(output.fileno(), 1 << 16)
        if not data:
            self._check()
            raise DemoFailed(f"mosquitto_sub ended: {self._tail.decode(errors='replace').strip() or 'it says nothing'}")
        *lines, self._tail = (self._tail + data).split(b"\n")
        self._messages.extend(_message(line) for line in lines)


def _spawn(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Ends with the demo, even where that is killed; in a session of its own, so that Ctrl-C reaches the demo alone."""
    if shutil.which(program) is None:
        raise DemoFailed(f"{program} is not installed: apt-get install mosquitto-clients")
    command = ("setpriv", "--pdeathsig", "KILL", program, *arguments)
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def _message(line: bytes) -> Message:
    topic, _, payload = line.decode(errors="replace").partition(" ")
    try:
        return Message(topic, json.loads(payload), time.monotonic())
    except json.JSONDecodeError:
        raise DemoFailed(f"what came from the broker can't be read: {line.decode(errors='replace')}") from None
