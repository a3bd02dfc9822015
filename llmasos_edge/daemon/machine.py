"""The machine as the kernel sees it: what models cost, and workers for them."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

from llmasos_edge.config.node import ModelConfig
from llmasos_edge.daemon.alternatives import smaller
from llmasos_edge.daemon.estimates import Estimates
from llmasos_edge.daemon.footprint import Shape, footprint, process, types_repacked
from llmasos_edge.engine.gguf import GgufHeader, read_header
from llmasos_edge.engine.host import Deliver, WorkerHost
from llmasos_edge.engine.protocol import Load, Program
from llmasos_edge.engine.version import VERSION
from llmasos_edge.errors import EngineFailed, LLMasOSError
from llmasos_edge.kernel.hal import Alternative, Engine, Limits
from llmasos_edge.kernel.memory.budget import Region
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId, Tokens
from llmasos_edge.services.arena_memory import ArenaMemory
from llmasos_edge.services.cgroup import Cgroups
from llmasos_edge.services.monitor import WorkerMemory, worker_memory
from llmasos_edge.services.store import StoredModel

log = logging.getLogger(__name__)
MIB: Final = 1 << 20
DAEMON_BYTES: Final = 40 * MIB  # measured: docs/benchmarks.md
POOL_AUTO: Final = 8192  # cells, if the budget leaves room
POOL_STEP: Final = 256
LOAD_BASE_MS: Final = 60_000  # also on a busy board
LOAD_MS_PER_GIB: Final = 20_000
LIMIT_MARGIN_BYTES: Final = 48 * MIB  # docs/adr/0015


class Known(NamedTuple):
    """A model that is in the store, and its settings."""

    stored: StoredModel
    header: GgufHeader
    config: ModelConfig

    @property
    def context(self) -> Tokens:
        return Tokens(min(self.config.context, self.header.context_length))


class Hardware:
    """Implements Machine. `room` is what the budget leaves for models; each configured model may take its share."""

    def __init__(
        self,
        *,
        models: Mapping[str, ModelConfig],
        estimates: Estimates,
        room: Bytes,
        memory: ArenaMemory,
        cores: int,
        programs: Callable[[Task], Program],
        deliver: Deliver,
        cgroups: Cgroups,
    ) -> None:
        self.cores = cores
        self._store: Final = estimates.store
        self.estimates: Final = estimates
        self.configure(models, room)
        self.arena: Final = memory
        self._programs, self._deliver = programs, deliver
        self._cgroups = cgroups
        self._headers: dict[str, GgufHeader] = {}  # by sha256
        self._types: Final = types_repacked()
        self._shapes: dict[tuple[str, str, ModelConfig], Shape] = {}  # as of:
        self._shaped_at = (0, 0)  # revision of the estimates, share
        self.workers: dict[ModelId, WorkerHost] = {}
        self.closed = False  # no more workers: those that are there are being stopped

    def configure(self, models: Mapping[str, ModelConfig], room: Bytes) -> None:
        """What `limits`, `footprint` and `load` go by from now on."""
        self._models, self._room, self._share = models, room, room // max(1, len(models))

    def limits(self, model: ModelId) -> Limits | None:
        """Raises EngineFailed for a file that is no model."""
        known = self._known(model)
        if known is None:
            return None
        shape, config = self._shape(known), known.config
        cell = Bytes(known.header.kv_bytes(1, config.kv))
        most = Tokens(0 if config.kv_pool or config.exact else max(POOL_AUTO, shape.cells))
        return Limits(known.context, Tokens(shape.cells), config.sequences, cell, config.pin, most)

    def footprint(self, model: ModelId, cells: Tokens | None = None) -> tuple[Region, ...]:
        known = self._known(model)
        if known is None:
            return ()
        shape = self._shape(known)
        return self._footprint(known, replace(shape, cells=cells or shape.cells))

    def alternatives(self, model: ModelId, room: Bytes) -> tuple[Alternative, ...]:
        known = self._known(model)
        if known is None:
            return ()
        found = list(smaller(known.config, known.context, lambda changed: self._cost(known, changed), room))
        for other in filter(None, map(self._known, self._store.names())):
            if other.stored.name != model and other.header.shape == known.header.shape:
                needed = self._cost(other, known.config)
                found += [Alternative({"model": other.stored.name}, Bytes(needed))] if needed <= room else []
        return tuple(found)

    def fingerprint(self, model: ModelId) -> str:
        known = self._known(model)
        return f"{known.stored.sha256} {known.config.kv} llama-cpp-python {VERSION}" if known else ""

    def load_timeout(self, model: ModelId) -> Milliseconds:
        known = self._known(model)
        size = known.header.file_size if known else 0
        return Milliseconds(LOAD_BASE_MS + size * LOAD_MS_PER_GIB // (1 << 30))

    def load(self, model: ModelId) -> Engine:
        if self.closed:
            raise EngineFailed(f"{model} is not loaded: the node is shutting down")
        known = self._known(model)
        if known is None:
            raise EngineFailed(f"{model} is no longer in the store: `llmasos model pull {model}`")
        shape, config = self._shape(known), known.config
        load = Load(
            model=model,
            path=str(known.stored.path),
            context=known.context,
            cells=shape.cells,
            sequences=config.sequences,
            kv=config.kv,
            exact=config.exact,
            threads=self.cores,
            repack=shape.repacked,
        )
        try:
            confine = partial(self._confine, model)
            worker = WorkerHost(load, self.arena.fd(model), self._programs, self._deliver, confine=confine)
        except OSError as error:
            raise EngineFailed(f"no worker can be started for {model}: {error.strerror}") from error
        self.workers[model] = worker
        return worker

    def unestimated(self) -> Iterator[tuple[StoredModel, Shape, Region]]:
        """Models of the store whose buffers no dry run has told yet, in the shape that they have now.

        The region is what a dry run takes.
        """
        for name in self._store.names():
            with suppress(EngineFailed):  # a file that is no model: who loads it is told
                known = self._known(name)
                if known is not None and self.estimates.wants(known.stored, shape := self._shape(known)):
                    yield known.stored, shape, Region("dry run", "runtime", process(known.header))

    def memory(self, model: ModelId) -> WorkerMemory | None:
        """What its worker takes now."""
        worker = self.workers.get(model)
        return worker_memory(worker.process.pid) if worker is not None and worker.alive else None

    def _confine(self, model: ModelId, pid: int) -> Callable[[], None]:
        """A memory limit of its own: what the ledger may come to charge for it, the arena, and a margin."""
        limits = self.limits(model)
        charge = sum(region.bytes for region in self.footprint(model, (limits and limits.most) or None))
        return self._cgroups.add(model, pid, charge + self.arena.size + LIMIT_MARGIN_BYTES)

    # ---- what is known, and what follows from it

    def _known(self, model: str) -> Known | None:
        stored = self._store.find(model)
        if stored is None:
            return None
        if stored.sha256 not in self._headers:
            try:
                self._headers[stored.sha256] = read_header(stored.path)
            except LLMasOSError as error:
                raise EngineFailed(f"{model} can't be loaded: {error.message}") from error
        return Known(stored, self._headers[stored.sha256], self._models.get(model) or ModelConfig(model))

    def _shape(self, known: Known) -> Shape:
        if self._shaped_at != (self.estimates.revision, self._share):
            self._shapes.clear()
            self._shaped_at = (self.estimates.revision, self._share)
        key = (known.stored.name, known.stored.sha256, known.config)
        if key not in self._shapes:
            self._shapes[key] = self._make_shape(known)
        return self._shapes[key]

    def _make_shape(self, known: Known) -> Shape:
        """Repacked weights, if there is room left."""
        config, shape = known.config, self._mapped(known)
        notes = self.estimates.notes(known.stored.name)
        possible = known.header.repacked_bytes(self._types) and notes.dry_runs.get(shape.key, {}).get("repacks", True)
        if config.exact or notes.repack_failed or not possible:
            return shape
        faster = replace(shape, repacked=True)
        taken = self._bytes(known, faster)
        return faster if taken <= self._share and taken + self._pinned(known) <= self._room else shape

    def _mapped(self, known: Known) -> Shape:
        """Cells as configured, or as many as its share has room for."""
        config, context = known.config, known.context
        shape = Shape(config.kv, max(context, config.kv_pool or POOL_AUTO), config.sequences, config.exact)
        while config.kv_pool is None and shape.cells > context and not self._affords(known, shape):
            shape = replace(shape, cells=max(context, shape.cells - POOL_STEP))
        return shape

    def _affords(self, known: Known, shape: Shape) -> bool:
        return self._bytes(known, shape) <= self._share

    def _bytes(self, known: Known, shape: Shape) -> int:
        return sum(region.bytes for region in self._footprint(known, shape))

    def _pinned(self, beside: Known) -> int:
        """What the other pinned models take, repacked or not: a copy of weights must never keep one out."""
        others = [config for name, config in self._models.items() if config.pin and name != beside.stored.name]
        known = filter(None, (self._known(config.name) for config in others))
        return sum(max(self._share, self._cost(each, each.config)) for each in known)

    def _footprint(self, known: Known, shape: Shape) -> tuple[Region, ...]:
        repacks = known.header.repacked_bytes(self._types) if shape.repacked else 0
        notes = self.estimates.notes(known.stored.name)
        return footprint(known.stored.name, known.header, shape, notes, Bytes(repacks))

    def _cost(self, known: Known, config: ModelConfig) -> int:
        """What it needs at least with these settings: its weights can stay as they are."""
        changed = known._replace(config=config)
        return self._bytes(changed, self._mapped(changed))
