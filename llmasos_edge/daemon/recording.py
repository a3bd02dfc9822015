"""The node's recording of its workload (`scheduler: {record: FILE}`): what tasks were like, and what steps cost here.

It tells lengths, times and names, never what was asked or answered.
"""

from collections import defaultdict
from typing import Final

from llmasos_edge import __version__
from llmasos_edge.config.node import NodeConfig
from llmasos_edge.daemon.costs import StepCosts
from llmasos_edge.daemon.kernel_loop import monotonic_ms
from llmasos_edge.daemon.machine import DAEMON_BYTES
from llmasos_edge.engine.protocol import Answer, Command
from llmasos_edge.kernel.dispatcher import Kernel
from llmasos_edge.kernel.processor import Processor
from llmasos_edge.kernel.scheduling.batch import SMOOTHING
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.trace import TraceEvent
from llmasos_edge.kernel.units import Milliseconds, ModelId, TaskId
from llmasos_edge.services.recorder import Recorder
from llmasos_edge.services.workload import Arrival, Header, Machine, Model, Outcome, PriorityClass, Rates, Settings

HEADER_EVERY_MS: Final = 5_000
GOES_ON: Final = "shutting_down"  # such a task comes again after the restart
CLASSES: Final[tuple[PriorityClass, ...]] = ("batch", "normal", "interactive", "critical")  # by kernel.units.Priority


class Recording:
    """Without `record` in the node file there is none, and every method does nothing."""

    def __init__(self, config: NodeConfig, kernel: Kernel) -> None:
        self._config, self._kernel = config, kernel
        path = config.scheduler.record
        self._recorder = None if path is None else Recorder(path)
        self._costs = defaultdict[ModelId, StepCosts](StepCosts)
        self._prepare_ms = defaultdict[ModelId, float](float)
        self._began = self._headed = Milliseconds(0)

    def start(self) -> None:
        """Before the kernel's thread. Raises ConfigError if the file can't be made."""
        if self._recorder is not None:
            self._recorder.start()
            self._began = monotonic_ms()
            self._kernel.trace.follow(self._traced)

    def stop(self) -> None:
        """After the kernel's thread."""
        if self._recorder is not None:
            self._recorder.put(self._header())
            self._recorder.stop()

    def hear(self, model: ModelId, message: Answer | Command) -> None:
        """On a worker's reader thread."""
        if self._recorder is not None:
            self._costs[model].hear(message, monotonic_ms())

    def _traced(self, event: TraceEvent) -> None:
        task = self._kernel.table.find(TaskId(str(event.details["task"]))) if event.kind == "task.ended" else None
        if task is None or task.outcome is None or task.ended_ms is None or self._recorder is None:
            return
        ended = task.outcome.error.code if task.outcome.error else "ok"
        if task.prompt_tokens and ended != GOES_ON:
            self._note_preparation(task)
            self._recorder.put(_arrival(task, task.ended_ms, ended, self._began))
        if event.at_ms - self._headed >= HEADER_EVERY_MS:
            self._headed = event.at_ms
            self._recorder.put(self._header())

    def _note_preparation(self, task: Task) -> None:
        """Who waited for nothing else tells how long it takes."""
        if task.first_run_ms is not None and not task.preemptions and not task.waited_ms:
            took = task.first_run_ms - task.submitted_ms
            self._prepare_ms[task.model] += SMOOTHING * (took - self._prepare_ms[task.model])

    def _header(self) -> Header:
        scheduler, memory, loader = self._config.scheduler, self._config.memory, self._kernel.loader
        found = (loader.processor(ModelId(model.name)) for model in self._config.models)
        machine = Machine(
            cores=loader.machine.cores,
            budget=loader.ledger.budget - DAEMON_BYTES,
            arena=memory.arena,
            swap=0 if memory.swap is None else memory.swap.size,
            models=tuple(self._model(each) for each in found if each is not None),
        )
        settings = Settings(
            policy=scheduler.policy,
            quantum_ms=scheduler.quantum_ms,
            decode_target_ms=scheduler.decode_target_ms,
            model_wait_ms=scheduler.model_wait_ms,
            replacement=memory.replacement,
        )
        return Header(1, f"llmasosd {__version__} as {self._config.name}", machine, settings)

    def _model(self, processor: Processor) -> Model:
        limits = processor.limits
        regions = processor.regions or self._kernel.loader.machine.footprint(processor.model)
        return Model(
            name=processor.model,
            context=limits.context,
            cells=limits.cells,
            most=limits.most,
            sequences=limits.sequences,
            cell_bytes=limits.cell_bytes,
            bytes=max(0, sum(region.bytes for region in regions) - limits.cells * limits.cell_bytes),
            pinned=limits.pinned,
            load_ms=processor.load_ms,
            prepare_ms=round(self._prepare_ms[processor.model], 2),
            rates=Rates(*(round(cost, 5) for cost in self._costs[processor.model].fit(processor.rates))),
        )


def _arrival(task: Task, ended_ms: Milliseconds, ended: str, began: Milliseconds) -> Arrival:
    """How long an answer would have been that did not come to its end, nobody knows: what was foretold is noted."""
    submission, first = task.submission, task.first_token_ms
    return Arrival(
        arrival_ms=max(0, task.submitted_ms - began),
        client=submission.client,
        model=submission.model,
        prompt=task.prompt_tokens,
        output=task.generated if ended == "ok" else max(task.generated, task.predicted),
        max_tokens=submission.max_tokens,
        priority=CLASSES[submission.priority],
        cached=task.cached_tokens,
        session=submission.session,
        app=submission.app,
        deadline_ms=submission.deadline_ms,
        outcome=Outcome(
            ended=ended,
            turnaround_ms=ended_ms - task.submitted_ms,
            waiting_ms=max(0, ended_ms - task.submitted_ms - task.ran_ms),
            response_ms=None if first is None else first - task.submitted_ms,
            preemptions=task.preemptions,
        ),
    )
