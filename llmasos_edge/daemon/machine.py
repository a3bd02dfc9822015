"""The machine as the kernel sees it: what models cost, and workers for them."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from llmasos_edge.config.node import ModelConfig
from llmasos_edge.engine.gguf import GgufHeader, read_header
from llmasos_edge.engine.host import Deliver, WorkerHost
from llmasos_edge.engine.protocol import LLAMA_CPP, Load, Program
from llmasos_edge.errors import EngineFailed, LLMasOSError
from llmasos_edge.kernel.hal import Engine, Limits
from llmasos_edge.kernel.memory.budget import Region
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId, Tokens
from llmasos_edge.services.arena_memory import ArenaMemory
from llmasos_edge.services.cgroup import Cgroups
from llmasos_edge.services.store import ModelStore

log = logging.getLogger(__name__)
MIB: Final = 1 << 20
DAEMON_BYTES: Final = 45 * MIB  # measured: docs/benchmarks.md
RUNTIME_BYTES: Final = 42 * MIB  # of a worker: interpreter, libraries
VOCABULARY_BYTES: Final = 384  # a token of the vocabulary (18 MB for 49k)
PREFIX_SEQUENCES: Final = 18  # beside the kernel's, in a worker's context: each has room for a row of logits
STEP_ACTIVATIONS: Final = 48  # bytes for each element of a step's activations
POOL_AUTO: Final = 8192  # cells, if the budget leaves room
POOL_STEP: Final = 256
LOAD_BASE_MS: Final = 60_000  # also on a busy board
LOAD_MS_PER_GIB: Final = 20_000
STEP_TOKENS: Final = 512
LIMIT_MARGIN_BYTES: Final = 48 * MIB  # docs/adr/0015


class Hardware:
    """Implements Machine. `room` is what the budget leaves for models; each configured model may take its share."""

    def __init__(
        self,
        *,
        models: Mapping[str, ModelConfig],
        store: ModelStore,
        room: Bytes,
        memory: ArenaMemory,
        cores: int,
        programs: Callable[[Task], Program],
        deliver: Deliver,
        cgroups: Cgroups,
    ) -> None:
        self.cores = cores
        self._store = store
        self.configure(models, room)
        self._memory, self._programs, self._deliver = memory, programs, deliver
        self._cgroups = cgroups
        self._headers: dict[str, GgufHeader] = {}  # by sha256
        self.workers: dict[ModelId, WorkerHost] = {}
        self.closed = False  # no more workers: those that are there are being stopped

    def configure(self, models: Mapping[str, ModelConfig], room: Bytes) -> None:
        """What `limits`, `footprint` and `load` go by from now on."""
        self._models, self._share = models, room // max(1, len(models))

    def limits(self, model: ModelId) -> Limits | None:
        """Raises EngineFailed for a file that is no model."""
        header = self._header(model)
        if header is None:
            return None
        config = self._config(model)
        cell = header.kv_bytes(1, config.kv)
        cells = config.kv_pool or self._pool(model, header, config, cell)
        context = Tokens(min(config.context, header.context_length or config.context))
        return Limits(context, Tokens(max(cells, context)), config.sequences, Bytes(cell), config.pin)

    def footprint(self, model: ModelId) -> tuple[Region, ...]:
        header, limits = self._header(model), self.limits(model)
        if header is None or limits is None:
            return ()
        config = self._config(model)
        kv = Bytes(header.kv_bytes(limits.cells, config.kv))
        regions = (*self._fixed(model, header, limits.sequences), Region(f"{model}.kv", "kv", kv))
        if config.exact:  # packing the pool saves all of it aside
            regions += (Region(f"{model}.scratch", "kv", kv),)
        return regions

    def fingerprint(self, model: ModelId) -> str:
        stored = self._store.find(model)
        return f"{stored.sha256 if stored else ''} {self._config(model).kv} llama-cpp-python {LLAMA_CPP}"

    def load_timeout(self, model: ModelId) -> Milliseconds:
        header = self._header(model)
        size = header.file_size if header else 0
        return Milliseconds(LOAD_BASE_MS + size * LOAD_MS_PER_GIB // (1 << 30))

    def load(self, model: ModelId) -> Engine:
        if self.closed:
            raise EngineFailed(f"{model} is not loaded: the node is shutting down")
        stored, limits = self._store.find(model), self.limits(model)
        if stored is None or limits is None:
            raise EngineFailed(f"{model} is no longer in the store: `llmasos model pull {model}`")
        config = self._config(model)
        load = Load(
            model=model,
            path=str(stored.path),
            context=limits.context,
            cells=limits.cells,
            sequences=limits.sequences,
            kv=config.kv,
            exact=config.exact,
            threads=self.cores,
        )
        try:
            confine = partial(self._confine, model)
            worker = WorkerHost(load, self._memory.fd(model), self._programs, self._deliver, confine=confine)
        except OSError as error:
            raise EngineFailed(f"no worker can be started for {model}: {error.strerror}") from error
        self.workers[model] = worker
        return worker

    def _confine(self, model: ModelId, pid: int) -> Callable[[], None]:
        """A memory limit of its own: what the ledger charges for it, the arena, which it may fill, and a margin."""
        charge = sum(region.bytes for region in self.footprint(model))
        return self._cgroups.add(model, pid, charge + self._memory.size + LIMIT_MARGIN_BYTES)

    def _config(self, model: str) -> ModelConfig:
        return self._models.get(model) or ModelConfig(model)

    def _header(self, model: str) -> GgufHeader | None:
        stored = self._store.find(model)
        if stored is None:
            return None
        if stored.sha256 not in self._headers:
            try:
                self._headers[stored.sha256] = read_header(stored.path)
            except LLMasOSError as error:
                raise EngineFailed(f"{model} can't be loaded: {error.message}") from error
        return self._headers[stored.sha256]

    def _fixed(self, model: str, header: GgufHeader, sequences: int) -> tuple[Region, ...]:
        """All but the KV pool."""
        logits = (sequences + PREFIX_SEQUENCES) * header.vocab_size * 4
        compute = 2 * logits + STEP_TOKENS * header.embedding_length * STEP_ACTIVATIONS
        runtime = RUNTIME_BYTES + header.vocab_size * VOCABULARY_BYTES
        return (
            Region(f"{model}.weights", "weights", Bytes(header.tensor_bytes)),
            Region(f"{model}.compute", "compute", Bytes(compute)),
            Region(f"{model}.runtime", "runtime", Bytes(runtime)),
        )

    def _pool(self, model: str, header: GgufHeader, config: ModelConfig, cell: int) -> int:
        left = self._share - sum(region.bytes for region in self._fixed(model, header, config.sequences))
        return min(POOL_AUTO, max(0, left) // (cell * (1 + config.exact)) // POOL_STEP * POOL_STEP)
