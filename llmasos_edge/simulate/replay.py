"""A replay: one workload through the kernel on a simulated machine under one policy, and what became of each task."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.engine.simulation import TARGETS, Simulation
from llmasos_edge.errors import ConfigError, LLMasOSError
from llmasos_edge.kernel.hal import Limits
from llmasos_edge.kernel.scheduling.batch import Targets
from llmasos_edge.kernel.task import Submission, Task
from llmasos_edge.kernel.trace import TraceEvent
from llmasos_edge.kernel.units import Bytes, ClientId, Milliseconds, ModelId, Priority, SessionId, TaskId, Tokens
from llmasos_edge.services.workload import Arrival, Header, Model, Workload

OK: Final = "ok"
MISSED: Final = "deadline_exceeded"  # it ran, or would have
REPORT_MS: Final = 90.0  # as the real stepper (engine/stepper.py)
UNPROMISED: Final = "unpromised"  # refused at once: its deadline could not be met


class Life(NamedTuple):
    """A task from its submission to its end, in milliseconds of the replay; `ended` is OK, MISSED, UNPROMISED, or the
    code of another error. `response_ms`: until its first token. `tokens`: read and generated.
    """

    number: int
    client: str
    priority: Priority
    submitted_ms: int
    ended_ms: int
    waiting_ms: int
    response_ms: int | None
    preemptions: int
    tokens: int
    ended: str

    @property
    def turnaround_ms(self) -> int:
        return self.ended_ms - self.submitted_ms


class Seat(NamedTuple):
    """A task on a sequence, from one moment to another."""

    model: str
    sequence: int
    began_ms: int
    ended_ms: int
    number: int
    client: str
    priority: Priority


class Replayed(NamedTuple):
    policy: str
    lives: list[Life]
    seats: list[Seat]
    parked: int
    restored: int
    swapped_out: int
    swapped_in: int
    loads: int


class Replay:
    """The userland of its simulation. `progress` is told how many tasks have ended, after each."""

    def __init__(self, workload: Workload, policy: str, progress: Callable[[int], None] = lambda ended: None) -> None:
        """Raises ConfigError for a machine on which a model has no room."""
        self._policy, self._progress = policy, progress
        self._arrivals = iter(workload.arrivals)
        self._coming: Arrival | None = None
        self._lives: list[Life] = []
        self._seats: list[Seat] = []
        self._open: dict[TaskId, tuple[int, Milliseconds]] = {}  # sequence, since when
        self._loads = 0
        self._simulation = _simulation(workload.header, policy, self)
        self._start = self._load_pinned(workload.header)
        self._simulation.trace.follow(self._traced)

    def run(self) -> Replayed:
        self._plan_next()
        simulation = self._simulation
        while simulation.step():
            pass
        swap = simulation.device.statistics()
        counts = (simulation.parked, simulation.restored, swap.writes, swap.reads, self._loads)
        return Replayed(self._policy, self._lives, self._seats, *counts)

    def _load_pinned(self, header: Header) -> Milliseconds:
        """As a node does when it starts; the moment at which it is ready."""
        simulation = self._simulation
        for model in header.machine.models:
            try:
                simulation.dispatcher.kernel.loader.check_fits(simulation.dispatcher.processor(ModelId(model.name)))
                if model.pinned:
                    simulation.do(simulation.syscalls.load, ModelId(model.name))
            except LLMasOSError as error:
                raise ConfigError(f"the workload's machine: {error.message}") from error
        simulation.run(max((model.load_ms + 1 for model in header.machine.models if model.pinned), default=0))
        return simulation.now

    # ---- tasks come

    def _plan_next(self) -> None:
        """One at a time: the timeline stays short."""
        self._coming = next(self._arrivals, None)
        if self._coming is not None:
            moment = self._start + self._coming.arrival_ms
            self._simulation.timeline.plan(max(0.0, moment - self._simulation.timeline.now), self._arrive)

    def _arrive(self) -> None:
        arrival = self._coming
        if arrival is None:
            return
        self._plan_next()
        try:
            self._simulation.do(self._simulation.syscalls.submit, _submission(arrival))
        except LLMasOSError as error:
            now, priority = self._simulation.now - self._start, Priority[arrival.priority.upper()]
            fields = (len(self._lives) + 1, arrival.client, priority, now, now)
            self._lives.append(Life(*fields, 0, None, 0, 0, error.code))

    # ---- Userland: what becomes of them

    def delta(self, task: Task, text: Sequence[str]) -> None:
        """Nobody reads it."""

    def event(self, kind: str, details: Mapping[str, object]) -> None:
        """Nobody listens."""

    def ended(self, task: Task) -> None:
        ended, first = task.ended_ms or task.submitted_ms, task.first_token_ms
        self._lives.append(
            Life(
                number=task.order,
                client=task.submission.client,
                priority=task.submission.priority,
                submitted_ms=task.submitted_ms - self._start,
                ended_ms=ended - self._start,
                waiting_ms=ended - task.submitted_ms - task.ran_ms,
                response_ms=None if first is None else first - task.submitted_ms,
                preemptions=task.preemptions,
                tokens=task.prompt_tokens - task.cached_tokens + task.generated,
                ended=_ending(task),
            )
        )
        self._progress(len(self._lives))

    def _traced(self, event: TraceEvent) -> None:
        match event.kind:
            case "task.seated":
                self._seated(event)
            case "task.preempted" | "task.ended":
                self._left(event.details["task"], event.at_ms)
            case "model.loading":
                self._loads += "progress" not in event.details
            case _:
                pass

    def _seated(self, event: TraceEvent) -> None:
        task = self._simulation.syscalls.find(TaskId(str(event.details["task"])))
        if task is None or task.sequence is None:
            return
        self._left(task.id, Milliseconds(event.at_ms - task.waited_ms))  # for another reason than those that are traced
        self._open[task.id] = task.sequence, event.at_ms

    def _left(self, task_id: object, now: Milliseconds) -> None:
        began = self._open.pop(TaskId(str(task_id)), None)
        task = self._simulation.syscalls.find(TaskId(str(task_id)))
        if began is not None and task is not None:
            span = (began[0], began[1] - self._start, now - self._start)
            self._seats.append(Seat(task.model, *span, task.order, task.submission.client, task.submission.priority))


def _ending(task: Task) -> str:
    error = task.outcome.error if task.outcome else None
    if error is None:
        return OK
    return UNPROMISED if error.code == MISSED and "expected_ms" in (error.details or {}) else error.code


def _submission(arrival: Arrival) -> Submission:
    return Submission(
        client=ClientId(arrival.client),
        model=ModelId(arrival.model),
        program=SimulatedProgram(arrival.prompt, arrival.output, cached=arrival.cached),
        priority=Priority[arrival.priority.upper()],
        max_tokens=Tokens(arrival.max_tokens),
        deadline_ms=None if arrival.deadline_ms is None else Milliseconds(arrival.deadline_ms),
        session=None if arrival.session is None else SessionId(arrival.session),
        app=arrival.app,
    )


def _simulation(header: Header, policy: str, userland: Replay) -> Simulation:
    machine, settings = header.machine, header.settings
    targets = Targets(
        quantum_ms=Milliseconds(settings.quantum_ms),
        decode_ms=Milliseconds(settings.decode_target_ms),
        max_waiting=TARGETS.max_waiting,
        max_waiting_per_client=TARGETS.max_waiting_per_client,
        model_wait_ms=Milliseconds(settings.model_wait_ms),
    )
    if machine.arena > machine.budget:
        raise ConfigError(f"the workload's machine: an arena of {machine.arena} bytes in {machine.budget}")
    return Simulation(
        {ModelId(model.name): _model(model) for model in machine.models},
        policy=policy,
        cores=machine.cores,
        targets=targets,
        replacement=settings.replacement,
        userland=userland,
        budget=Bytes(machine.budget),
        arena=Bytes(machine.arena),
        swap=Bytes(machine.swap),
    )


def _model(model: Model) -> SimulatedModel:
    cells, most = Tokens(model.cells), Tokens(model.most)
    rates = model.rates
    return SimulatedModel(
        limits=Limits(Tokens(model.context), cells, model.sequences, Bytes(model.cell_bytes), model.pinned, most),
        weights=Bytes(model.bytes),
        step_ms=rates.step_ms,
        generate_ms=rates.generate_ms,
        prefill_ms=rates.prefill_ms,
        generate_cell_us=rates.generate_cell_us,
        prefill_cell_us=rates.prefill_cell_us,
        prepare_ms=model.prepare_ms,
        load_ms=model.load_ms,
        mute=True,
        report_ms=REPORT_MS,
    )
