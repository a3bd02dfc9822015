"""Workers as the dispatcher has them: models loaded, drained and dropped, prompts prepared, and deaths survived."""

from contextlib import suppress
from typing import Final, Protocol

from llmasos_edge.errors import EngineFailed, LLMasOSError
from llmasos_edge.kernel.loader import Loader
from llmasos_edge.kernel.memory.replacement import Replacement
from llmasos_edge.kernel.memory.residency import Load
from llmasos_edge.kernel.processor import PREPARE_MS, Phase, Processor
from llmasos_edge.kernel.swapper import Swapper
from llmasos_edge.kernel.task import Outcome, State, Task
from llmasos_edge.kernel.task_table import TaskTable
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Milliseconds, ModelId

DEATHS_ALONE: Final = 2  # then a task is what kills the worker


class Owner(Protocol):
    """What the dispatcher does for them."""

    def end(self, task: Task, outcome: Outcome, now: Milliseconds) -> None: ...

    def leave(self, processor: Processor, task: Task) -> None: ...

    def processor(self, model: ModelId) -> Processor: ...


class Workers:
    """Not thread-safe: on the kernel's thread, for the dispatcher."""

    def __init__(self, loader: Loader, swapper: Swapper, table: TaskTable, trace: Trace, owner: Owner) -> None:
        self._loader, self._swapper, self._table, self._trace, self._owner = loader, swapper, table, trace, owner

    # ---- deaths

    def died(self, processor: Processor, why: str, now: Milliseconds) -> None:
        """The worker is gone. Who was in it runs again, one at a time, unless it was killed for its size.

        A model that could not be loaded is tried once more: its worker may have been the victim, not the culprit.
        """
        was_loading = processor.phase is not Phase.LOADED
        hopeless = was_loading and processor.load_failed
        processor.load_failed = was_loading and not hopeless
        processor.wanted = processor.limits.pinned and not hopeless
        victims = [] if processor.outgrown else [*processor.running.values(), *processor.newcomers.preparing.values()]
        alone = len(victims) == 1 and victims[0].suspect
        self._loader.unloaded(processor)
        self._trace.record(now, "worker.died", model=processor.model, why=why, tasks=[t.id for t in victims])
        mine = self._evacuate_all(processor, now)
        for task in victims:
            task.deaths_alone += alone
            if alone and task.kv is not None:
                self._swapper.drop(task.kv)  # it may be what kills the worker
            if not task.suspect:
                task.suspect = True
                processor.suspects.append(task)
        for task in mine:
            if hopeless:
                self._owner.end(task, Outcome(error=EngineFailed(f"{task.model} could not be loaded: {why}")), now)
            elif task.deaths_alone >= DEATHS_ALONE:
                text = f"the worker of {task.model} died {DEATHS_ALONE} times running this task alone: {why}"
                self._owner.end(task, Outcome(error=EngineFailed(text)), now)

    def _evacuate_all(self, processor: Processor, now: Milliseconds) -> list[Task]:
        """All live tasks of the model; nothing of them is left in the worker."""
        self._swapper.abandon(processor.model)
        processor.saving = 0
        mine = [task for task in self._table.live() if task.model == processor.model]
        for task in mine:
            self._evacuate(processor, task, now)
        return mine

    def _evacuate(self, processor: Processor, task: Task, now: Milliseconds) -> None:
        """Nothing of the task is left in the worker."""
        self._owner.leave(processor, task)
        processor.stop_preparing(task, now)
        task.start_over()
        if task.state in (State.READY, State.RUNNING, State.NEW):
            task.move(State.BLOCKED, now, "model")
        if task.state is State.BLOCKED and task.reason == "model":
            processor.newcomers.wait(task)

    def check_hung(self, now: Milliseconds) -> None:
        """Kill those who should have spoken by now."""
        for processor in self._loader.processors():
            overdue = [by for by in (processor.expect_by, processor.prepare_by) if by is not None and by <= now]
            if overdue and processor.engine is not None:
                processor.expect_by = processor.prepare_by = None
                self._trace.record(now, "worker.hung", model=processor.model)
                processor.engine.kill()

    # ---- coming and going

    def make_resident(self, model_wait_ms: Milliseconds, now: Milliseconds) -> None:
        """Drop, drain and load models as residency has it, until there is no more to be done now.

        `model_wait_ms`: the bound on waiting for a model.
        """
        for processor in self._loader.processors():
            going = processor.stale or processor.leaving
            with suppress(LLMasOSError):  # its tasks have heard of it
                self._begin(processor, now)
            if going and processor.phase is Phase.LOADED and processor.empty and not processor.busy:
                processor.wanted = processor.stale and processor.limits.pinned
                self.drop(processor, now)
        more = True
        while more:
            plan = self._loader.plan(model_wait_ms, now)
            more = self._loader.drain(plan, now) or bool(plan.loads)
            for load in plan.loads:
                with suppress(LLMasOSError):  # its tasks have heard of it
                    self.load(self._owner.processor(load.model), load, now)

    def load(self, processor: Processor, place: Load | Replacement, now: Milliseconds) -> None:
        """Start loading it there. Raises EngineFailed if no worker can be started: its tasks have ended with that."""
        for model in place.victims:
            victim = self._owner.processor(model)
            self._loader.displace(victim, processor.model, now)
            self._evacuate_all(victim, now)
        self._loader.spare(place.spared)
        self._loader.load(processor, now)
        processor.due = isinstance(place, Load) and place.due
        self._begin(processor, now)

    def _begin(self, processor: Processor, now: Milliseconds) -> None:
        """Raises EngineFailed if no worker can be started: its tasks have ended with that."""
        try:
            self._loader.begin(processor, now)
        except LLMasOSError as error:
            processor.load_failed = True
            self.died(processor, error.message, now)
            raise

    def drop(self, processor: Processor, now: Milliseconds) -> None:
        """At once, or as soon as what is being saved is. Raises BadRequest if it is busy.

        Tasks that are suspended in it start over when they are resumed.
        """
        if processor.saving and not processor.busy:
            processor.leaving = True
            return
        self._loader.drop(processor, now)
        self._evacuate_all(processor, now)

    def prepare_waiting(self, processor: Processor, now: Milliseconds) -> None:
        """In quarantine only the first suspect is prepared, and alone: nobody else must be blamed for it."""
        newcomers = processor.newcomers
        while newcomers.waiting:
            suspect = processor.quarantined
            if suspect and (processor.running or newcomers.preparing or suspect.id not in newcomers.waiting):
                return
            task = suspect or next(iter(newcomers.waiting.values()))
            newcomers.leave(task)
            if task.prepared:  # it was kept out for a while
                task.move(State.READY, now)
                processor.enqueue(task)
                continue
            task.preparing = True
            task.move(State.NEW, now)
            newcomers.prepare(task)
            processor.prepare_by = processor.prepare_by or Milliseconds(now + PREPARE_MS)
            processor.worker.prepare(task)
