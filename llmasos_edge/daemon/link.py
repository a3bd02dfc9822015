"""The node's link to its broker: the managed mosquitto, the connection, and what the node publishes of itself."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from llmasos_edge import __version__
from llmasos_edge.api import views
from llmasos_edge.api.mqtt_server import MqttServer
from llmasos_edge.errors import ConfigError, Panic
from llmasos_edge.ipc.broker import ManagedBroker
from llmasos_edge.ipc.messages import NodeState, NodeStatus, encode
from llmasos_edge.ipc.mqtt import Acknowledge, Endpoint, Handlers, MqttPort
from llmasos_edge.ipc.topics import Topics
from llmasos_edge.services import monitor

if TYPE_CHECKING:
    from llmasos_edge.api.calls import Json
    from llmasos_edge.config.node import MqttConfig
    from llmasos_edge.daemon.node import Node
    from llmasos_edge.kernel.trace import TraceEvent
    from llmasos_edge.kernel.units import Milliseconds

log = logging.getLogger(__name__)
PUBLISHED: Final = frozenset(
    {
        *("model.loading", "model.loaded", "model.draining", "model.dropped", "worker.died", "worker.hung"),
        *("memory.pressure", "memory.parked", "memory.dropped", "memory.refused"),
        *("task.preempted", "config.applied", "app.fallback", "app.failed", "app.dropped"),
    }
)


class Link:
    """Without `mqtt` in the node file there is none, and every method does nothing."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._config = node.config.mqtt
        self.topics = Topics(node.config.site, node.config.name)
        self._broker: ManagedBroker | None = None
        self._port: MqttPort | None = None
        self._server: MqttServer | None = None
        self.open = False

    @property
    def server(self) -> MqttServer:
        if self._server is None:
            raise Panic("Link.server: not started")
        return self._server

    # ---- the broker of our own

    def start_broker(self) -> None:
        """On the main thread; nothing is connected yet.

        Raises ConfigError: mosquitto is missing, its port is taken, or a password or an authority can't be read.
        """
        config, node = self._config, self._node
        if config is not None and config.managed:
            self._broker = ManagedBroker(node.state_dir / "broker", config.port)
            self._broker.start()
        self._server = MqttServer(
            door=node.door,
            calls=node.calls,
            journal=node.journal,
            security=node.security,
            topics=self.topics,
            publisher=self._connected_port,
            post=node.loop.post,
        )
        if config is not None:
            handlers = Handlers(self._server.on_request, self._on_message, self._on_link, self._server.deliver_again)
            self._port = MqttPort(self._endpoint(config), self.topics, handlers, encode(self._status("offline")))

    def stop_broker(self) -> None:
        if self._broker is not None:
            self._broker.stop()

    def poll(self) -> None:
        if self._broker is not None:
            self._broker.poll()

    # ---- the connection

    def start(self) -> None:
        """Connect, and take requests."""
        self.open = True
        if self._port is not None:
            self._node.apps.start(self._port)
            self._node.trace.follow(self._publish_event)
            self._port.start()

    def stop(self) -> None:
        """Say that the node has stopped, give out what is queued, and leave."""
        if self._port is not None and self.open:
            self._port.publish(self.topics.status, encode(self._status("stopped")), 1, retain=True)
            self._port.stop()

    def announce(self) -> None:
        """Publish what is retained: status, info, models."""
        port = self._port
        if port is None or not port.connected:
            return
        port.publish(self.topics.status, encode(self._status(self.state())), 1, retain=True)
        port.publish(self.topics.info, msgspec.json.encode(self._info()), 1, retain=True)
        models = self._node.status()["models"]
        port.publish(self.topics.models, msgspec.json.encode(models), 1, retain=True)

    def state(self) -> NodeState:
        return "online" if self._node.ready else "degraded"

    def broker(self) -> Json:
        """What `status` tells of it."""
        config = self._config
        if config is None:
            return {"url": None, "port": None, "connected": False, "managed": False, "trust": None}
        port = self._broker.port if self._broker is not None else config.port
        return {
            "url": f"{'mqtts' if config.tls else 'mqtt'}://{config.host}:{port}",
            "port": port,
            "connected": self._port is not None and self._port.connected,
            "managed": config.managed,
            "trust": config.trust,
        }

    def _connected_port(self) -> MqttPort:
        if self._port is None:
            raise Panic("Link._connected_port: there is no broker")
        return self._port

    def _endpoint(self, config: MqttConfig) -> Endpoint:
        port = self._broker.port if self._broker is not None else config.port
        password = None if config.password_file is None else read_password(config.password_file, os.environ)
        ca_file = None if config.ca_file is None else str(config.ca_file)
        return Endpoint(config.host, port, config.tls, ca_file, config.user, password)

    def _on_link(self, connected: bool) -> None:
        """On the MQTT thread."""
        log.info("broker %s: %s", self.broker()["url"], "connected" if connected else "connection lost")
        if connected:
            self._node.loop.post(self.announce)

    def _on_message(self, topic: str, payload: bytes, retained: bool, ack: Acknowledge) -> None:
        """A message that may trigger apps. On the MQTT thread."""
        if self._node.apps.runner.on_message(topic, payload, retained):
            # Its submission was posted before this: the acknowledgement follows the commit.
            self._node.loop.post(lambda: self._node.journal.barrier(lambda _: ack()))
        else:
            ack()

    # ---- what the node tells of itself

    def _status(self, state: NodeState) -> NodeStatus:
        return NodeStatus(state=state, boot_id=self._node.boot_id, version=__version__, since=self._node.since)

    def _info(self) -> Json:
        config = self._node.config
        return {
            "version": __version__,
            "board": config.board.name,
            "machine": platform.machine(),
            "cores": self._node.hardware.cores,
            "ram": monitor.system_memory().total,
            "budget": self._node.kernel.loader.ledger.budget,
            "pid": os.getpid(),
        }

    def metrics(self, now: Milliseconds) -> None:
        """RAM, pressure, temperature, and how much is going on."""
        if self._port is None:
            return
        measured, pressure = self._node.measured(), monitor.memory_pressure()
        shape = {
            "uptime_ms": now - self._node.started_ms,
            "measured": sum(measured.values()),
            "charged": self._node.kernel.loader.ledger.charged,
            "ram_available": monitor.system_memory().available,
            "pressure_level": self._node.kernel.loader.pressure.level.word,
            "pressure": None if pressure is None else pressure.some,
            "temperature_c": monitor.temperature_c(),
            "tokens": self._node.tokens,
            "sessions": views.sessions(self._node.kernel.swapper),
            "swap": views.swap(self._node.kernel.swapper),
            "tasks": self._node.status()["tasks"],
        }
        self._port.publish(self.topics.metrics, msgspec.json.encode(shape))

    def _publish_event(self, event: TraceEvent) -> None:
        if event.kind in PUBLISHED and self._port is not None:
            if event.kind in ("model.loaded", "model.dropped", "worker.died"):
                self.announce()
            qos = 0 if "progress" in event.details else 1  # it comes often, and the next one says more
            self._port.publish(self.topics.event(event.kind), msgspec.json.encode(event.details), qos)


def read_password(file: Path, environment: Mapping[str, str]) -> str:
    """What the file holds, or the credential of its name that systemd hands over. Raises ConfigError."""
    handed = Path(environment.get("CREDENTIALS_DIRECTORY", "/nowhere")) / file.name
    try:
        return (handed if handed.exists() else file).read_text().strip()
    except OSError as error:
        raise ConfigError(f"mqtt.password_file: {file}: {error.strerror}") from error
