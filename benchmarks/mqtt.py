"""MQTT: the time to the first token of a streamed answer at QoS 1, beside the control socket's."""

import argparse
import json
import queue
import socket
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, Self

from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.machine import describe
from benchmarks.node import BenchNode
from benchmarks.report import spread, table, verdict

TITLE: Final = "time to the first token over MQTT (QoS 1, streamed) beside the control socket, with a slow disk too"
GOAL_MS: Final = 3.0
SLOW_MS: Final = 50
CLIENT: Final = "bench"
BODY: Final = {"prompt": "The lighthouse keeper lit the lamp and", "max_tokens": 4, "temperature": 0}
PATIENCE_S: Final = 60.0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=40, help="interleaved pairs of each disk (40)")


@dataclass(slots=True)
class Times:
    """Milliseconds after the request was sent."""

    socket_first: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)
    reply: list[float] = field(default_factory=list)


class Device:
    """An MQTT client as a device has it: a connection that stays, without Nagle's delay."""

    def __init__(self, port: int) -> None:
        self._client = PahoClient(CallbackAPIVersion.VERSION2, client_id=CLIENT)
        self._client.on_socket_open = self._no_delay
        self._client.on_message = self._arrived
        self._seen: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()
        self._root = f"llmasos/v1/{CLIENT}/{CLIENT}"
        self._port = port

    @staticmethod
    def _no_delay(_client: PahoClient, _data: Any, opened: Any) -> None:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _arrived(self, _client: PahoClient, _data: Any, message: MQTTMessage) -> None:
        self._seen.put((time.perf_counter(), message.topic.rpartition("/")[2]))

    def _connected(self, *_: object) -> None:
        self._client.subscribe(f"{self._root}/res/{CLIENT}/#", 1)

    def __enter__(self) -> Self:
        self._client.on_subscribe = lambda *_: self._seen.put((0.0, "subscribed"))
        self._client.on_connect = self._connected
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        self._next("subscribed")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def ask(self, name: str, times: Times) -> None:
        """One request, until its reply."""
        body = json.dumps(BODY | {"id": name, "stream": True})
        sent = time.perf_counter()
        self._client.publish(f"{self._root}/req/{CLIENT}/generate", body, 1)
        moments: dict[str, float] = {}
        while name not in moments:
            moment, kind = self._seen.get(timeout=PATIENCE_S)
            moments.setdefault(kind, (moment - sent) * 1000)
        times.first.append(moments["stream"])
        times.accepted.append(moments["accepted"])
        times.reply.append(moments[name])

    def _next(self, kind: str) -> None:
        while self._seen.get(timeout=PATIENCE_S)[1] != kind:
            pass


def _over_socket(node: BenchNode, times: Times) -> None:
    """The same request; a client has its connection already, as the device has."""
    with node.client() as client:
        sent = time.perf_counter()
        stream = client.stream("submit", op="generate", body=BODY)
        first = next(time.perf_counter() for event in stream if "delta" in event)
        stream.finish()
    times.socket_first.append((first - sent) * 1000)


def _measure(pairs: int, slow_ms: int) -> Times:
    times, warm = Times(), Times()
    node = BenchNode("benchmarks.slow_disk", str(slow_ms)) if slow_ms else BenchNode()
    with node, Device(node.call("status")["broker"]["port"]) as device:
        for number in range(pairs + 2):
            kept = times if number >= 2 else warm
            for over_mqtt in (True, False) if number % 2 else (False, True):
                if over_mqtt:
                    device.ask(f"r{number}", kept)
                else:
                    _over_socket(node, kept)
    return times


def run(options: argparse.Namespace) -> None:
    describe("mqtt")
    print(
        f"{options.pairs} interleaved pairs; QoS 1, stream, greedy; the prompt's prefix is computed before", flush=True
    )
    rows = []
    for slow_ms in (0, SLOW_MS):
        times = _measure(options.pairs, slow_ms)
        added = median(times.first) - median(times.socket_first)
        disk = f"fsync + {slow_ms} ms" if slow_ms else "as it is"
        firsts = (spread(times.socket_first), spread(times.first))
        waits = (spread(times.accepted), spread(times.reply))
        rows.append((disk, *firsts, f"{added:.2f}", verdict(added, GOAL_MS, at_most=True), *waits))
    head = ("disk", "first: socket ms", "first: MQTT ms", "added ms", "goal", "accepted ms", "reply ms")
    table(head, rows)
