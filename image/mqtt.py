"""The outside of a node for the boot tests: a client at its broker, with a user's name and password or without."""

import json
import queue
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Final, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from image.emulator import LOOPBACK

NODE: Final = "llmasos/v1/home/{}"
CONNECT_S: Final = 20.0


class Refused(Exception):
    """The broker does not let this client in, or let it do this."""


class Client:
    """Connected from construction on; `close` ends it."""

    def __init__(self, port: int, user: str | None = None, password: str | None = None, node: str = "llmasos") -> None:
        """Raises Refused, or OSError while nobody listens."""
        self.user, self.topic = user, NODE.format(node)
        self._came: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._connected, self._code = threading.Event(), "no answer"
        self._paho = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        if user is not None:
            self._paho.username_pw_set(user, password)
        self._paho.on_connect = self._on_connect
        self._paho.on_message = lambda _client, _data, message: self._came.put((message.topic, message.payload))
        self._paho.connect(LOOPBACK, port)
        self._paho.loop_start()
        if not self._connected.wait(CONNECT_S) or self._code != "Success":
            self.close()
            raise Refused(self._code)

    def _on_connect(self, _client: object, _data: object, _flags: object, code: object, _properties: object) -> None:
        self._code = str(code)
        self._connected.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._paho.disconnect()
        self._paho.loop_stop()

    def subscribe(self, topic: str) -> None:
        self._paho.subscribe(topic, qos=1)

    def publish(self, topic: str, payload: object) -> None:
        self._paho.publish(topic, json.dumps(payload), qos=1)

    def receive(self, wanted: Callable[[str], bool], timeout_s: float) -> Any:
        """The payload of the next message on a topic that is wanted; TimeoutError if none comes."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                topic, payload = self._came.get(timeout=left)
            except queue.Empty:
                break
            if wanted(topic):
                return json.loads(payload)
        raise TimeoutError(f"nothing came within {timeout_s:.0f} s")

    def wait_online(self, timeout_s: float) -> None:
        self.subscribe(f"{self.topic}/status")
        while self.receive(lambda it: it.endswith("/status"), timeout_s)["state"] != "online":
            pass

    def ask(self, text: str, *, timeout_s: float = 120.0, **fields: object) -> dict[str, Any]:
        """A question and its final reply."""
        return self.replies([self.request(text, **fields)], timeout_s)[0]

    def request(self, text: str, **fields: object) -> str:
        """Send a question; the id that its reply will have."""
        id = uuid.uuid4().hex
        self.subscribe(f"{self.topic}/res/{self.user}/{id}")
        body = {"id": id, "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
        self.publish(f"{self.topic}/req/{self.user}/chat", body)
        return id

    def replies(self, ids: list[str], timeout_s: float) -> list[dict[str, Any]]:
        """The replies to requests, in the order they come."""
        deadline, left, found = time.monotonic() + timeout_s, set(ids), []
        while left:
            reply = self.receive(lambda it: it.rpartition("/")[2] in left, deadline - time.monotonic())
            left.discard(reply["id"])
            found.append(reply)
        return found
