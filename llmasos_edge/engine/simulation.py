"""A simulation: a machine of simulated engines, and the whole kernel on it, run from event to event."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from llmasos_edge.engine.simulated import Deliver, SimulatedEngine, SimulatedModel, Timeline
from llmasos_edge.engine.simulated_work import Fault, SimulatedProgram
from llmasos_edge.errors import Panic
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.dispatcher import Dispatcher, Kernel
from llmasos_edge.kernel.loader import Loader
from llmasos_edge.kernel.memory.arena import Arena
from llmasos_edge.kernel.memory.backing import (
    Moved,
    MoveFailed,
    ReadDone,
    ReadFailed,
    Record,
    StoredSegment,
    SwapEvent,
    SwapStatistics,
    WriteFailed,
    Written,
)
from llmasos_edge.kernel.memory.budget import Ledger, Region
from llmasos_edge.kernel.memory.extent import Extent, Move
from llmasos_edge.kernel.memory.replacement import REPLACEMENTS
from llmasos_edge.kernel.scheduling.batch import Targets
from llmasos_edge.kernel.scheduling.policies import POLICIES
from llmasos_edge.kernel.segments import Stores
from llmasos_edge.kernel.swapper import Swapper
from llmasos_edge.kernel.syscalls import Syscalls
from llmasos_edge.kernel.task import Submission, Task
from llmasos_edge.kernel.task_table import TaskTable
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import (
    Bytes,
    ClientId,
    Milliseconds,
    ModelId,
    Priority,
    SegmentId,
    SessionId,
    TaskId,
    Tokens,
)

CLIENT: Final = ClientId("simulation")
UNBOUNDED: Final = 1 << 30
TARGETS: Final = Targets(Milliseconds(200), Milliseconds(150), max_waiting=UNBOUNDED, max_waiting_per_client=UNBOUNDED)
ENDLESS_MS: Final = 86_400_000.0  # a simulation that goes on for a day longer will not end
LOAD_TIMEOUT: Final = Milliseconds(60_000)
T = TypeVar("T")


class SimulatedMachine:
    """Workers on one timeline. What they say reaches `deliver` after `latency_ms`, in order."""

    def __init__(
        self,
        models: Mapping[ModelId, SimulatedModel],
        timeline: Timeline,
        deliver: Deliver,
        cores: int = 2,
        latency_ms: float = 0.0,
    ) -> None:
        self.cores = cores
        self.engines: dict[ModelId, SimulatedEngine] = {}
        self.present: set[ModelId] = set()  # whose worker has memory: none has told yet that it is gone
        self.fingerprints: dict[ModelId, str] = {}
        self.loading_faults: dict[ModelId, Fault] = {}  # what befalls workers that are started from now on
        self._models, self._timeline, self._receive, self._latency_ms = models, timeline, deliver, latency_ms

    def limits(self, model: ModelId) -> hal.Limits | None:
        return self._models[model].limits if model in self._models else None

    def footprint(self, model: ModelId, cells: Tokens | None = None) -> tuple[Region, ...]:
        found = self._models[model]
        kv = Bytes((cells or found.limits.cells) * found.limits.cell_bytes)
        return Region(f"{model} weights", "weights", found.weights), Region(f"{model} kv", "kv", kv)

    def fingerprint(self, model: ModelId) -> str:
        return self.fingerprints.get(model, "")

    def alternatives(self, model: ModelId, room: Bytes) -> tuple[hal.Alternative, ...]:
        """A smaller pool."""
        found = self._models[model]
        cells = (room - found.weights) // found.limits.cell_bytes
        needed = Bytes(found.weights + cells * found.limits.cell_bytes)
        return (hal.Alternative({"kv_pool": cells}, needed),) if cells > 0 else ()

    def load_timeout(self, model: ModelId) -> Milliseconds:
        return LOAD_TIMEOUT

    def load(self, model: ModelId) -> SimulatedEngine:
        engine = SimulatedEngine(model, self._models[model], self._timeline, self._deliver)
        self.engines[model] = engine
        self.present.add(model)
        fault, load_ms = self.loading_faults.get(model), self._models[model].load_ms
        if fault is None:
            found = self._models[model]
            details: dict[str, object] = {"step_ms": found.costs([(0, 1, True)]), "prefill_ms": found.prefill_ms}
            self._timeline.plan(load_ms / 2, partial(self._tell, engine, hal.Loading(model, 0.5)))
            self._timeline.plan(load_ms, partial(self._tell, engine, hal.Loaded(model, details)))
        elif fault is Fault.DIE:
            self._timeline.plan(load_ms, partial(engine.die, "its file is broken"))
        return engine

    def _tell(self, engine: SimulatedEngine, event: hal.Loading | hal.Loaded) -> None:
        if engine.alive:
            self._deliver(event.model, event)

    def _deliver(self, model: ModelId, event: hal.Event) -> None:
        self._timeline.plan(self._latency_ms, partial(self._arrive, model, event))

    def _arrive(self, model: ModelId, event: hal.Event) -> None:
        if isinstance(event, hal.Died):
            self.present.discard(model)
        self._receive(model, event)


class SimulatedMemory:
    """RAM that nobody looks into."""

    def discard(self, model: ModelId, extent: Extent) -> None:
        """Nothing is there."""

    def move(self, model: ModelId, move: Move) -> None:
        """Nothing is there."""


class SimulatedSwap:
    """A disk of `rate` bytes a millisecond that does one thing after another, and holds what was written."""

    def __init__(self, timeline: Timeline, deliver: Callable[[SwapEvent], None], rate: float = 20_000) -> None:
        self.rate = rate
        self.held: dict[SegmentId, StoredSegment] = {}
        self.failing = False  # whatever it is asked for now fails
        self.read_bytes = self.written_bytes = self.moved_bytes = 0
        self._reads = self._writes = 0
        self._timeline, self._deliver = timeline, deliver
        self._free_at = 0.0

    def write(self, record: Record, source: Extent, target: Extent) -> None:
        self._writes += 1
        if self.failing:
            self._later(0, WriteFailed(record.segment, "no space left"))
            return
        self.held[record.segment] = StoredSegment(record, target)
        self.written_bytes += record.size
        self._later(record.size, Written(record.segment))

    def read(self, request: int, model: ModelId, source: Extent, target: Extent, size: Bytes) -> None:
        self._reads += 1
        if self.failing or source not in [each.extent for each in self.held.values()]:
            self._later(0, ReadFailed(request, "input/output error"))
            return
        self.read_bytes += size
        self._later(size, ReadDone(request))

    def forget(self, segments: Iterable[SegmentId]) -> None:
        for segment in segments:
            self.held.pop(segment, None)

    def move_stored(self, segment: SegmentId, move: Move) -> None:
        if self.failing or segment not in self.held:
            self._later(0, MoveFailed(segment, move, "input/output error"))
            return
        self.moved_bytes += move.source.size
        self.held[segment] = StoredSegment(self.held[segment].record, move.target)
        self._later(move.source.size, Moved(segment, move))

    def statistics(self) -> SwapStatistics:
        counts = (self._writes, Bytes(self.written_bytes), self._reads, Bytes(self.read_bytes), Bytes(self.moved_bytes))
        return SwapStatistics(*counts, self.rate if self._reads else None)

    def _later(self, size: int, event: SwapEvent) -> None:
        self._free_at = max(self._free_at, self._timeline.now) + size / self.rate
        self._timeline.plan(self._free_at - self._timeline.now, partial(self._deliver, event))


class Transcript:
    """What those who wait for tasks were told."""

    def __init__(self) -> None:
        self.deltas: list[tuple[TaskId, int, str]] = []  # task, attempt, text
        self.ends: list[Task] = []

    def delta(self, task: Task, text: Sequence[str]) -> None:
        self.deltas.append((task.id, task.attempt, "".join(text)))

    def ended(self, task: Task) -> None:
        self.ends.append(task)

    def event(self, kind: str, details: Mapping[str, object]) -> None:
        """Nobody listens."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a simulated machine's memory, in bytes. `swap` 0: it has no swap file. `quota`: of each client's sessions."""

    budget: Bytes = Bytes(1 << 30)
    arena: Bytes = Bytes(64 << 20)
    swap: Bytes = Bytes(0)
    quota: Bytes = Bytes(1 << 30)


class Simulation:
    """Give it work with `submit` and `do`, then let time pass with `step` or `run`."""

    def __init__(
        self,
        models: Mapping[ModelId, SimulatedModel],
        *,
        policy: str = "priority",
        cores: int = 2,
        targets: Targets = TARGETS,
        latency_ms: float = 0.0,
        replacement: str = "cost",
        userland: hal.Userland | None = None,
        **sizes: Bytes,
    ) -> None:
        """`sizes` are those of Sizes. Without a userland there is a transcript."""
        size = Sizes(**sizes)
        self.models: Final = tuple(models)
        self.timeline: Final = Timeline()
        self.machine: Final = SimulatedMachine(models, self.timeline, self._receive, cores, latency_ms)
        self.ledger: Final = Ledger(size.budget)
        if not self.ledger.charge(Region("arena", "arena", size.arena)):
            raise Panic(f"Simulation: an arena of {size.arena} bytes in a budget of {size.budget}")
        self.prefilled = 0  # prompt tokens that all workers have computed, again and again where state was lost
        self.parked = self.restored = 0  # times that state was saved into the arena, and came back from there
        self.trace: Final = Trace()
        self.transcript: Final = Transcript()
        self.arena: Final = Arena(size.arena, "best-fit")
        self.device: Final = SimulatedSwap(self.timeline, self._swapped)
        swap, device = (Arena(size.swap, "best-fit"), self.device) if size.swap else (None, None)
        stores = Stores(self.arena, SimulatedMemory(), swap, device, size.quota)
        self.swapper: Final = Swapper(stores, self.trace)
        loader = Loader(self.machine, self.ledger, self.trace, REPLACEMENTS[replacement])
        table = TaskTable(boot=1)
        who = userland or self.transcript
        parts = (table, POLICIES[policy](), self.swapper, loader, self.trace, targets, who)
        self.dispatcher: Final = Dispatcher(Kernel(*parts))
        self.syscalls: Final = Syscalls(self.dispatcher)

    @property
    def now(self) -> Milliseconds:
        return Milliseconds(int(self.timeline.now))

    def submission(
        self,
        program: SimulatedProgram,
        *,
        model: ModelId | None = None,
        client: ClientId = CLIENT,
        priority: Priority = Priority.NORMAL,
        max_tokens: int = 256,
        deadline_ms: int | None = None,
        session: str | None = None,
        attempt: int = 1,
    ) -> Submission:
        """The default model is the first one."""
        return Submission(
            client=client,
            model=model or self.models[0],
            program=program,
            priority=priority,
            max_tokens=Tokens(max_tokens),
            deadline_ms=None if deadline_ms is None else Milliseconds(deadline_ms),
            session=None if session is None else SessionId(session),
            attempt=attempt,
        )

    def submit(self, program: SimulatedProgram, **fields: Any) -> Task:
        """Takes the fields of `submission`. Raises what Syscalls.submit raises."""
        return self.do(self.syscalls.submit, self.submission(program, **fields))

    def do(self, call: Callable[..., T], *args: object) -> T:
        """A system call, such as `do(syscalls.renice, task, priority)`, at this moment."""
        result = call(*args, self.now)
        self.dispatcher.dispatch(self.now)
        return result

    def step(self) -> bool:
        """Let the next thing happen; False: nothing is left that could."""
        happens, tick = self._next()
        if tick is not None and (happens is None or tick <= happens):
            self.timeline.now = max(self.timeline.now, tick)
            self.dispatcher.tick(self.now)
            self.dispatcher.dispatch(self.now)
        elif happens is not None:
            self.timeline.happen()
        return happens is not None or tick is not None

    def run(self, ms: float | None = None) -> None:
        """Until nothing is left to happen, or for so long. Raises Panic if it never ends."""
        end = self.timeline.now + (ENDLESS_MS if ms is None else ms)
        while (moment := min((at for at in self._next() if at is not None), default=None)) is not None:
            if moment > end:
                if ms is None:
                    raise Panic(f"Simulation.run: {self.dispatcher.kernel.table.live_count} tasks never end")
                break
            self.step()
        if ms is not None:
            self.timeline.now = end

    def _next(self) -> tuple[float | None, Milliseconds | None]:
        return self.timeline.next_moment, self.dispatcher.next_tick()

    def _swapped(self, event: SwapEvent) -> None:
        self.dispatcher.swapped(event)
        self.dispatcher.dispatch(self.now)

    def _receive(self, model: ModelId, event: hal.Event) -> None:
        if isinstance(event, hal.Report):
            self.prefilled += event.prefilled
            self.dispatcher.report(model, event, self.now)
        else:
            self.parked += isinstance(event, hal.Saved) and event.size > 0
            self.restored += isinstance(event, hal.Restored) and event.kept > 0
            self.dispatcher.handle(event, self.now)
        self.dispatcher.dispatch(self.now)
