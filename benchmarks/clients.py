"""Clients of a node over MQTT: many names on one connection, and every reply with the moment at which it came."""

import json
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Self

from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

ROOT: Final = "llmasos/v1/bench/bench"
PATIENCE_S: Final = 300.0


@dataclass(slots=True)
class Request:
    """Seconds of time.perf_counter(); `reply` when it has come."""

    client: str
    tokens: int
    deadline_ms: int | None
    sent: float
    ended: float = 0.0
    reply: dict[str, Any] = field(default_factory=dict)

    @property
    def turnaround(self) -> float:
        return self.ended - self.sent

    @property
    def generated(self) -> int:
        return int(self.reply["usage"]["completion_tokens"]) if self.reply.get("status") == "ok" else 0


class Clients:
    """A context: connected inside it. The node's own broker on loopback believes each name (QoS 0: no disk in it)."""

    def __init__(self, port: int) -> None:
        self._paho = PahoClient(CallbackAPIVersion.VERSION2, client_id="bench")
        self._paho.on_message = self._arrived
        self._port, self._number = port, 0
        self.open: dict[str, Request] = {}
        self._ended: queue.SimpleQueue[Request] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        subscribed: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._paho.on_subscribe = lambda *_: subscribed.put(True)
        self._paho.on_connect = self._connected
        self._paho.connect("127.0.0.1", self._port)
        self._paho.loop_start()
        subscribed.get(timeout=PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._paho.disconnect()
        self._paho.loop_stop()

    def _connected(self, *_: object) -> None:
        self._paho.subscribe(f"{ROOT}/res/+/+")

    def _arrived(self, _client: PahoClient, _data: Any, message: MQTTMessage) -> None:
        request = self.open.pop(message.topic.rpartition("/")[2], None)
        if request is not None:
            request.ended, request.reply = time.perf_counter(), json.loads(message.payload)
            self._ended.put(request)

    def send(self, client: str, tokens: int, klass: str = "normal", deadline_ms: int | None = None) -> Request:
        """A count, which the model goes on with for ever: it ends after just so many tokens."""
        self._number += 1
        name, first = f"r{self._number}", 100 + self._number % 800
        prompt = ", ".join(str(each) for each in range(first, first + 12)) + ","
        asked: dict[str, object] = {
            "id": name,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "class": klass,
        }
        if deadline_ms is not None:
            asked["deadline_ms"] = deadline_ms
        request = self.open[name] = Request(client, tokens, deadline_ms, time.perf_counter())
        self._paho.publish(f"{ROOT}/req/{client}/generate", json.dumps(asked))
        return request

    def ended(self, timeout_s: float = PATIENCE_S) -> Request | None:
        """The next one that has its reply; None: there was none in this time."""
        try:
            return self._ended.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def all_ended(self, count: int) -> Iterator[Request]:
        for _ in range(count):
            request = self.ended()
            if request is None:
                raise TimeoutError(f"no reply in {PATIENCE_S:.0f} s; {len(self.open)} are missing")
            yield request
