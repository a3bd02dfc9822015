"""A real node as a process of its own, with the real model, and the devices that speak to it: for the tests beside."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from llmasos_edge.api.client import Client
from llmasos_edge.errors import Unreachable

ROOT = "llmasos/v1/home/kitchen"
MODEL = "smollm2-135m"
MODELS = Path(os.environ.get("LLMASOS_MODELS", Path(__file__).parents[2] / ".state/models"))
PATIENCE_S = 120.0
NODE_FILE = """\
apiVersion: llmasos/v1
kind: Node
metadata: {{name: kitchen, site: home}}
spec:
  memory: {{budget: 1GiB, arena: 32MiB}}
  mqtt: {mqtt}
  http: {http}
  models:
    - {{name: {model}, context: 512, sequences: 8, kv_pool: 2048, pin: {pin}}}
  apps: [{apps}]
  apps_dir: apps
  clients:
    - {{name: lamp, ceiling: normal}}
    - {{name: trusted, operate: true, reply_topics: [home/answers]}}
"""

Json = dict[str, Any]


def eventually(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds; the test fails if it does not in time."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, f"it did not happen in {patience_s:.0f} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process runs: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _children(pid: int) -> set[int]:
    """Of all its threads, those that end meanwhile aside."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            found |= {int(child) for child in (task / "children").read_text().split()}
    return found


class RealNode:
    """llmasosd on folders of its own. `mqtt` is what the node file says of the broker."""

    def __init__(
        self,
        folder: Path,
        mqtt: str = "{managed: true, port: 0}",
        *,
        apps: str = "",
        model: str = MODEL,
        http: str = '{listen: "127.0.0.1:0"}',
        pin: bool = True,
    ) -> None:
        self.folder = folder
        self.state, self.runtime = folder / "state", folder / "run"
        self.config, self.log = folder / "node.yaml", folder / "node.log"
        (folder / "apps").mkdir(parents=True, exist_ok=True)
        self.config.write_text(NODE_FILE.format(mqtt=mqtt, http=http, apps=apps, model=model, pin=str(pin).lower()))
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start it, and do not wait."""
        places = ["--config", self.config, "--state", self.state, "--runtime", self.runtime]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "llmasos_edge.daemon", *map(str, places)],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=os.environ | {"LLMASOS_MODELS": str(MODELS)} | environment,
            )
        return self.process

    def start(self, **environment: str) -> "RealNode":
        """Start it, and wait until it is ready."""
        self.spawn(**environment)
        self.until_ready()
        return self

    def until_ready(self) -> None:
        eventually(lambda: bool(self.status().get("ready")), f"the node is ready; its log:\n{self.log.read_text()}")

    def status(self) -> Json:
        """What `status` says; nothing while nobody answers."""
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            shape: Json = self.call("status")
        except Unreachable:
            return {}
        return shape

    def call(self, name: str, /, **args: object) -> Any:
        with self.client() as client:
            return client.call(name, **args)

    def client(self) -> Client:
        return Client(self.runtime / "control.sock", PATIENCE_S)

    def ask(self, prompt: str, **more: object) -> Json:
        """A greedy continuation, as the operator."""
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 8} | more
        reply: Json = self.call("submit", op="generate", body=body)
        return reply

    @property
    def port(self) -> int:
        return int(self.status()["broker"]["port"])

    @property
    def url(self) -> str:
        """Where it serves HTTP."""
        return str(self.status()["http"]["url"])

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def children(self) -> dict[str, int]:
        """`worker` and `mosquitto`, as far as they run."""
        found = {}
        for pid in _children(self.pid):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if alive(pid):
                found["worker" if b"engine.worker" in words else "mosquitto"] = pid
        return found

    def tasks(self, **wanted: object) -> list[Json]:
        """Live tasks, those whose fields are as wanted."""
        rows: list[Json] = self.call("ps", all=False)
        return [row for row in rows if all(row[key] == value for key, value in wanted.items())]

    def kill(self) -> None:
        """As a power cut: SIGKILL."""
        self.end(signal.SIGKILL)

    def terminate(self) -> int:
        """As systemd stops it; returns its exit status."""
        return self.end(signal.SIGTERM)

    def end(self, number: signal.Signals) -> int:
        process = self.process
        assert process is not None
        process.send_signal(number)
        return process.wait(PATIENCE_S)

    def close(self) -> None:
        """Whatever state it is in, it is gone afterwards."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Device:
    """An MQTT client that keeps all it gets, in order; the broker keeps its session while it is away."""

    def __init__(self, port: int, name: str, protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5) -> None:
        self.name = name
        self._got: list[paho.MQTTMessage] = []
        self._news = threading.Condition()
        modern = protocol == MQTTProtocolVersion.MQTTv5
        clean = None if modern else False
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=f"test-{name}", clean_session=clean, protocol=protocol
        )
        self.client.reconnect_delay_set(1, 1)
        self.client.on_message = self._on_message
        self._subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_connect = lambda client, *_: client.subscribe(f"{ROOT}/res/{name}/#", 1)
        if modern:
            kept = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            kept.SessionExpiryInterval = 600
            self.client.connect("127.0.0.1", port, clean_start=False, properties=kept)
        else:
            self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self._subscribed.wait(PATIENCE_S)

    def listen(self, pattern: str) -> None:
        self._subscribed.clear()
        self.client.subscribe(pattern, 1)
        assert self._subscribed.wait(PATIENCE_S)

    def publish(self, topic: str, body: bytes, qos: int = 1, *, retain: bool = False, **properties: object) -> None:
        """Publish, and wait until the broker has it."""
        sent = None
        if properties:
            sent = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            for name, value in properties.items():
                setattr(sent, name, value)
        self.client.publish(topic, body, qos, retain, sent).wait_for_publish(PATIENCE_S)

    def send(self, op: str, body: Json | bytes, qos: int = 1, **properties: Any) -> None:
        """A request to the node."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.publish(f"{ROOT}/req/{self.name}/{op}", payload, qos, **properties)

    def generate(self, request_id: str, prompt: str, qos: int = 1, **more: Any) -> None:
        """A greedy continuation."""
        self.send("generate", {"id": request_id, "prompt": prompt, "temperature": 0, "max_tokens": 8} | more, qos)

    def reply(self, request_id: str, patience_s: float = PATIENCE_S) -> Json:
        """The final reply to a request."""
        return self.next(f"{ROOT}/res/{self.name}/{request_id}", patience_s)

    def ask(self, op: str, body: Json | bytes, request_id: str = "ask") -> Json:
        """A request, and its reply."""
        before = len(self.all(f"{ROOT}/res/{self.name}/{request_id}"))
        self.send(op, body)
        return self.nth(f"{ROOT}/res/{self.name}/{request_id}", before)

    def next(self, topic: str, patience_s: float = PATIENCE_S) -> Json:
        """The first message on a topic, once it is there."""
        return self.nth(topic, 0, patience_s)

    def nth(self, topic: str, index: int, patience_s: float = PATIENCE_S) -> Json:
        with self._news:
            found = self._news.wait_for(lambda: len(self._on(topic)) > index, patience_s)
            assert found, f"nothing came on {topic}; but on {[message.topic for message in self._got]}"
            shape: Json = json.loads(self._on(topic)[index].payload)
            return shape

    def all(self, topic: str) -> list[Json]:
        """What came on a topic so far."""
        with self._news:
            return [json.loads(message.payload) for message in self._on(topic)]

    def messages(self, topic: str) -> list[paho.MQTTMessage]:
        with self._news:
            return self._on(topic)

    def topics(self) -> list[str]:
        """The topics of all that came, in order."""
        with self._news:
            return [message.topic for message in self._got]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        del self.client  # and with it its descriptors

    def _on(self, topic: str) -> list[paho.MQTTMessage]:
        return [message for message in self._got if message.topic == topic]

    def _on_message(self, client: paho.Client, data: object, message: paho.MQTTMessage) -> None:
        with self._news:
            self._got.append(message)
            self._news.notify_all()
