"""The node's apps: read from their files, run, reloaded."""

import logging
from collections.abc import Callable

import msgspec

from llmasos_edge.api.app_server import AppServer, OnDone
from llmasos_edge.api.calls import Json
from llmasos_edge.api.ticket import Post
from llmasos_edge.apps.runner import AppRunner, Run
from llmasos_edge.apps.spec import load_apps
from llmasos_edge.config.node import NodeConfig
from llmasos_edge.daemon.kernel_loop import monotonic_ms
from llmasos_edge.errors import LLMasOSError, Panic
from llmasos_edge.ipc.mqtt import MqttPort
from llmasos_edge.kernel.units import Milliseconds
from llmasos_edge.resources import resource
from llmasos_edge.services.journal import Entry

log = logging.getLogger(__name__)


class NodeApps:
    """Its runner is replaced on reload; runs under way end with the runner that began them."""

    def __init__(self, config: NodeConfig, post: Post, event: Callable[[str, dict[str, object]], object]) -> None:
        """Raises ConfigError for an app that is not there, or wrong."""
        self._post, self._event = post, event
        self._port: MqttPort | None = None
        self._server: AppServer | None = None
        self.runner = self._make(config)

    def connect(self, server: AppServer) -> None:
        self._server = server

    def start(self, port: MqttPort) -> None:
        """Subscribe to what triggers."""
        self._port = port
        self.runner.start()

    def reload(self, config: NodeConfig) -> None:
        runner = self._make(config)
        self.runner = runner
        if self._port is not None:
            runner.start()

    def expand(self, app: str, given: str | dict[str, object]) -> dict[str, object]:
        return self.runner.expand(app, given)

    def system(self, app: str) -> str | None:
        return self.runner.system(app)

    def resume(self, entry: Entry) -> None:
        """Take up a run of the journal again."""
        run = msgspec.json.decode(entry.route, type=Run)
        try:
            self._door().resume(run.app, entry, self.runner.adopt(run))
        except LLMasOSError as error:
            log.error("a run of app %s can't be taken up again: %s", run.app, error.message)

    def listing(self) -> list[Json]:
        return self.runner.listing()

    def show(self, app: str) -> Json:
        return self.runner.show(app)

    def next_tick(self) -> Milliseconds | None:
        moment = self.runner.next_tick()
        return None if moment is None else Milliseconds(moment)

    def tick(self, now: Milliseconds) -> None:
        self.runner.tick(now)

    def _make(self, config: NodeConfig) -> AppRunner:
        specs = load_apps(config.apps, [config.apps_dir, resource("configs") / "apps"])
        return AppRunner(
            specs,
            submit=self._submit,
            publish=self._publish,
            subscribe=self._subscribe,
            clock_ms=monotonic_ms,
            event=self._event,
        )

    def _door(self) -> AppServer:
        if self._server is None:
            raise Panic("NodeApps._door: not connected")
        return self._server

    def _submit(self, run: Run, body: dict[str, object], on_done: OnDone) -> None:
        self._door().submit(run.app, body, msgspec.json.encode(run) if run.durable else None, on_done)

    def _publish(self, topic: str, payload: bytes) -> None:
        if self._port is not None:
            self._port.publish(topic, payload, 1, content_type="application/json")

    def _subscribe(self, pattern: str) -> None:
        if self._port is not None:
            self._port.subscribe(pattern)
