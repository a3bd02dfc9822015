"""A node: its parts put together in boot order, and taken down in the exact reverse."""

import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from llmasos_edge import __version__
from llmasos_edge.api.app_server import AppServer
from llmasos_edge.api.calls import Calls, Json
from llmasos_edge.api.control_server import ControlCalls
from llmasos_edge.api.door import Clocks, Door
from llmasos_edge.api.requests import Accepting
from llmasos_edge.api.sessions import Sessions
from llmasos_edge.api.standing import Standing
from llmasos_edge.api.views import model_state, pressure
from llmasos_edge.config.load import load_node
from llmasos_edge.config.node import NodeConfig, effective
from llmasos_edge.daemon import settings
from llmasos_edge.daemon.apps import NodeApps
from llmasos_edge.daemon.estimates import Estimates
from llmasos_edge.daemon.kernel_loop import KernelLoop, monotonic_ms
from llmasos_edge.daemon.link import Link
from llmasos_edge.daemon.machine import DAEMON_BYTES, Hardware
from llmasos_edge.daemon.meter import Meter
from llmasos_edge.daemon.models import Errands, NodeModels
from llmasos_edge.daemon.recording import Recording
from llmasos_edge.daemon.saved_state import SavedState
from llmasos_edge.daemon.state_lock import StateLock
from llmasos_edge.daemon.web import Web
from llmasos_edge.engine.protocol import Answer, Command
from llmasos_edge.errors import ConfigError, LLMasOSError, ShuttingDown
from llmasos_edge.ipc.control import ControlServer
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.dispatcher import Dispatcher, Kernel
from llmasos_edge.kernel.loader import Loader
from llmasos_edge.kernel.memory.budget import Ledger, Region
from llmasos_edge.kernel.memory.replacement import REPLACEMENTS
from llmasos_edge.kernel.scheduling.policies import POLICIES
from llmasos_edge.kernel.syscalls import Syscalls
from llmasos_edge.kernel.task import Outcome
from llmasos_edge.kernel.task_table import TaskTable
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId
from llmasos_edge.resources import resource
from llmasos_edge.services import cgroup, monitor
from llmasos_edge.services.journal import Journal
from llmasos_edge.services.pressure import Watch
from llmasos_edge.services.security import OPERATOR, Security
from llmasos_edge.services.store import ModelStore
from llmasos_edge.services.watchdog import service_manager, watchdog_interval_s

log = logging.getLogger(__name__)
RETRY_MS: Final = 2_000
PULL_AGAIN_MS: Final = 60_000
METRICS_EVERY_MS: Final = 30_000


@dataclass(frozen=True, slots=True)
class Places:
    """Where a node's files are; `models` is a folder to take model files from."""

    config: Path
    state: Path
    runtime: Path
    models: Path | None


class Node:
    """Made, started and stopped on the main thread."""

    def __init__(self, config: NodeConfig, places: Places) -> None:
        """Raises ConfigError and StoreError; nothing runs yet."""
        self.config, self._places = config, places
        self.boot_id = secrets.token_hex(8)
        self.started_ms = monotonic_ms()
        self.tokens = 0  # generated since the start
        self.state_dir = places.state
        self.since = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self._lock = StateLock(places.state)
        self._manager = service_manager(os.environ)
        self.trace = Trace()
        self.journal = Journal(
            places.state / "journal.db",
            monotonic_ms=monotonic_ms,
            wall_ms=lambda: time.time_ns() // 1_000_000,
            report=lambda kind, details: log.error("%s: %s", kind, details),
            keep_s=config.sessions.keep_s,
        )
        self.boot = self.journal.boot()
        self.loop = KernelLoop(self._broken)
        proven = config.mqtt is not None and config.mqtt.trust == "acl"
        self.security = Security(settings.callers(config), proven=proven)
        self.restart_for: tuple[str, ...] = ()  # keys of the node file whose change takes a restart
        store = ModelStore(places.state / "models", places.models)
        self.models = NodeModels(store, [model.name for model in config.models])
        self.apps = NodeApps(config, self.loop.post, self._event)
        self._errands = Errands(self.loop.post)
        self._build(store)
        self.link, self.web = Link(self), Web(self)
        self._steps: list[Callable[[], None]] = []
        self.ready = False
        self._retry_at: Milliseconds | None = None
        self._alive_s = watchdog_interval_s(os.environ)
        os.environ.pop("NOTIFY_SOCKET", None)  # a child must not speak for us: mosquitto says READY by itself
        self._alive_at = self._metrics_at = monotonic_ms()

    def _build(self, store: ModelStore) -> None:
        """The kernel, its machine, and the door."""
        config = self.config
        ledger = Ledger(settings.budget(config))
        fixed = (Region("daemon", "daemon", Bytes(DAEMON_BYTES)), Region("arena", "arena", config.memory.arena))
        if not ledger.charge(*fixed):
            raise ConfigError(f"memory.budget: {ledger.budget >> 20} MiB is less than daemon and arena take: raise it")
        self._saved = SavedState(
            config, self.trace, lambda event: self.loop.post(lambda: self.dispatcher.swapped(event))
        )
        cores = monitor.cores()
        accepting = Accepting(config.models[0].name, self.apps.expand, self.apps.system)
        clocks = Clocks(monotonic_ms, lambda: time.time_ns() // 1_000_000)
        self.door = Door(config.name, self.boot, self.journal, accepting, clocks, self.loop.post)
        self.hardware = Hardware(
            models=settings.models(config),
            estimates=Estimates(store, self._errands.aside),
            room=settings.room(config),
            memory=self._saved.memory,
            cores=cores,
            programs=self.door.program,
            deliver=self._deliver,
            cgroups=cgroup.enter(),
        )
        self.kernel = Kernel(
            table=TaskTable(self.boot),
            scheduler=POLICIES[config.scheduler.policy](),
            swapper=self._saved.swapper,
            loader=Loader(self.hardware, ledger, self.trace, REPLACEMENTS[config.memory.replacement]),
            trace=self.trace,
            targets=settings.targets(config.scheduler),
            userland=self.door,
        )
        self._recording = Recording(config, self.kernel)
        self._meter = Meter(self.hardware, self.kernel.loader, self._errands, self.loop.post, self._handle)
        self._watch = Watch()
        self.dispatcher = Dispatcher(self.kernel)
        self.syscalls = Syscalls(self.dispatcher)
        self.door.open(self.syscalls, self.trace)
        self._connect()

    def _connect(self) -> None:
        """What callers reach: the calls, the control socket's and the apps' side of the door."""
        sessions = Sessions(self.journal, self.door.conversations, self.kernel.swapper, self.dispatcher.turns)
        self.journal.on_expired = lambda keys: self.loop.post(partial(sessions.expired, keys))
        self.calls = Calls(
            node=self.config.name,
            boot=self.boot,
            kernel=self.kernel,
            syscalls=self.syscalls,
            standing=Standing(self.syscalls),
            door=self.door,
            models=self.models,
            apps=self.apps,
            sessions=sessions,
            about=self,
            clock_ms=monotonic_ms,
            slow=self._errands.run,
        )
        self._control = ControlCalls(self.door, self.calls, self.journal, self.security, self.trace, self.loop.post)
        self._app_server = AppServer(self.door, self.security, self.boot, self.loop.post)
        self.apps.connect(self._app_server)

    # ---- up and down

    def start(self) -> None:
        """The boot list. Raises LLMasOSError; `stop` then takes down what stands."""
        runtime = self._places.runtime
        try:
            runtime.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{runtime}: the runtime directory can't be used: {error.strerror}") from error
        server = ControlServer(runtime / "control.sock", self._control.handle)
        for up, down in (
            (self.journal.start, self.journal.stop),
            (self._saved.start, self._saved.stop),
            (self._recording.start, self._recording.stop),
            (self._start_loop, self.loop.stop),
            (server.start, server.stop),
            (self.link.start_broker, self.link.stop_broker),
            (self.web.start, self.web.stop),
            (self._start_models, self._stop_tasks),
        ):
            up()
            self._steps.append(down)
        name = f"{self.config.site}/{self.config.name}"
        log.info("node %s, boot %d: control socket %s", name, self.boot, runtime / "control.sock")

    def stop(self) -> None:
        self._manager.stopping()
        while self._steps:
            self._steps.pop()()
        if self.journal.boot():
            self._lock.release()

    def poll(self) -> None:
        """Once a second, on the main thread. The kernel is woken while memory is short, and until all is calm again."""
        self.link.poll()
        self._meter.poll(monotonic_ms())
        spaces = self._watch.look()
        if self.kernel.loader.pressure.level or any(space.strain for space in spaces):
            self.loop.post(lambda: self.dispatcher.relief.felt(spaces, monotonic_ms()))

    def _start_loop(self) -> None:
        timers = [(each.next_tick, each.tick) for each in (self.apps, self.calls.standing)]
        self.loop.start(self.dispatcher, [*timers, (self._next_beat, self._beat)])

    def _start_models(self) -> None:
        """Fetch what is missing; then take up the journal's work, and let callers in."""
        missing = self.models.missing()
        if missing:
            log.info("fetching %s", ", ".join(missing))
            self._errands.run(partial(self._fetch, missing), lambda _: self._open(), self._fetch_failed)
        else:
            self.loop.post(self._open)

    def _fetch(self, missing: list[str]) -> None:
        for name in missing:
            self.models.pull(name, lambda at: None)

    def _fetch_failed(self, error: LLMasOSError) -> None:
        log.error("a model is missing: %s", error.message)
        self._retry_at = Milliseconds(monotonic_ms() + PULL_AGAIN_MS)
        if not self.link.open:
            self._open()

    def _open(self) -> None:
        """On the kernel's thread: replay, pinned models, and the door is open."""
        if self.syscalls.closing:
            return  # the end came while models were fetched
        if self.link.open:
            self.link.announce()
        else:
            self.link.start()
            self._replay()
        self._meter.estimate(self._load_pinned)

    def _load_pinned(self) -> None:
        for model in self.config.models:
            try:
                if model.pin and not self.syscalls.closing:
                    self.syscalls.load(ModelId(model.name), monotonic_ms())
            except LLMasOSError as error:
                log.error("%s is not loaded: %s", model.name, error.message)
        self._check_ready()

    def _replay(self) -> None:
        for entry in self.journal.pending():
            if entry.client == OPERATOR:
                self._control.resume(entry)
            elif "/" in entry.client:
                self.apps.resume(entry)
            else:
                self.link.server.resume(entry)
        for finished in self.journal.undelivered():
            if "/" not in finished.client and finished.client != OPERATOR:
                self.link.server.deliver(finished)

    def _check_ready(self) -> None:
        """Ready: every configured model is here, and the pinned ones are loaded."""
        loaded = all(
            (processor := self.kernel.loader.processor(ModelId(model.name))) is not None
            and (not model.pin or (processor.engine is not None and processor.details))
            for model in self.config.models
        )
        if loaded and not self.ready:
            log.info("ready")
            self.ready = True
            self._manager.ready()
            self.trace.record(monotonic_ms(), "node.ready")
            self.link.announce()

    def _stop_tasks(self) -> None:
        """Callers are told, durable work stays in the journal, and the workers give everything back."""

        def close() -> None:
            self.syscalls.closing = self.hardware.closed = True
            now = monotonic_ms()
            for task in tuple(self.kernel.table.live()):
                told = {"text": "".join(task.text)}
                error = ShuttingDown("the node is shutting down", retry_after_ms=RETRY_MS, details=told)
                self.dispatcher.end(task, Outcome(error=error), now)
            for processor in self.kernel.loader.processors():
                self.kernel.loader.end(processor)

        self.loop.ask(close)
        for worker in tuple(self.hardware.workers.values()):
            worker.join()
        self.link.stop()

    def _broken(self, error: BaseException) -> None:
        """A bug of ours: what is accepted is in the journal, so a new process goes on with it."""
        log.critical("the kernel is broken: restart", exc_info=error)
        os._exit(70)

    # ---- events

    def _deliver(self, model: ModelId, message: Answer | Command) -> None:
        """From a worker's reader thread."""
        self._recording.hear(model, message)
        self.loop.post(partial(self._handle, model, message))

    def _handle(self, model: ModelId, message: Answer | Command) -> None:
        now = monotonic_ms()
        if isinstance(message, hal.Report):
            self.tokens += message.decoded
            self.dispatcher.report(model, message, now)
        elif isinstance(message, hal.Event):
            self._meter.learn(model, message)
            self.dispatcher.handle(message, now)
            if isinstance(message, hal.Loaded):
                self._check_ready()
        else:
            log.error("worker of %s sent a %s", model, type(message).__name__)

    def _event(self, kind: str, details: dict[str, object]) -> None:
        self.loop.post(lambda: self.trace.record(monotonic_ms(), kind, **details))

    def _next_beat(self) -> Milliseconds | None:
        beat = None if self._alive_s is None else Milliseconds(self._alive_at + int(self._alive_s * 1000))
        metrics = Milliseconds(self._metrics_at + METRICS_EVERY_MS)
        return min(moment for moment in (beat, self._retry_at, metrics) if moment is not None)

    def _beat(self, now: Milliseconds) -> None:
        self._alive_at = now
        self._manager.alive()
        if now - self._metrics_at >= METRICS_EVERY_MS:
            self._metrics_at = now
            self.link.metrics(now)
            self._meter.estimate(lambda: None)
        if self._retry_at is not None and self._retry_at <= now:
            self._retry_at = None
            self._start_models()

    # ---- what callers ask of the node itself

    def status(self) -> Json:
        rows = {str(each.model): model_state(each) for each in self.kernel.loader.processors()}
        rows |= {name: {"id": name, "state": "missing"} for name in self.models.missing()}
        names = [model.name for model in self.config.models]
        return {
            "node": self.config.name,
            "site": self.config.site,
            "board": self.config.board.name,
            "version": __version__,
            "boot_id": self.boot_id,
            "boot": self.boot,
            "pid": os.getpid(),
            "state": self.link.state(),
            "ready": self.ready,
            "since": self.since,
            "broker": self.link.broker(),
            "http": self.web.status(),
            "models": [rows.get(name, {"id": name, "state": "unloaded"}) for name in names],
            "pressure": pressure(self.kernel),
            "pending": settings.pending(self),
            "apps": [row["name"] for row in self.apps.listing()],
            "tasks": self.kernel.table.counts(),
            "state_dir": str(self._places.state.absolute()),
        }

    def configuration(self) -> Json:
        return effective(self.config)

    def measured(self) -> Mapping[str, int]:
        return self._meter.measured()

    def reload(self) -> Json:
        """Take up a changed node file, and its apps. Raises LLMasOSError; nothing has changed then."""
        outcome = settings.reload(self, load_node(self._places.config, boards=resource("board")))
        log.info("reloaded: %s", ", ".join(f"{what} {names or '-'}" for what, names in outcome.items()))
        self.trace.record(monotonic_ms(), "config.applied", apps=list(self.config.apps), **outcome)
        self.link.announce()
        self._start_models()
        return outcome

    def reload_quietly(self) -> None:
        """SIGHUP: whoever sent it reads the log."""

        def run() -> None:
            try:
                self.reload()
            except LLMasOSError as error:
                log.error("not reloaded: %s", error.message)

        self.loop.post(run)
