"""The dispatcher: hears what happened, asks the policy, and makes it so; the only caller of hal."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from llmasos_edge.errors import (
    DeadlineExceeded,
    Panic,
    PromptTooLong,
    UnknownModel,
    from_wire,
)
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.leases import Leases
from llmasos_edge.kernel.loader import Loader
from llmasos_edge.kernel.memory.backing import SwapEvent
from llmasos_edge.kernel.pools import Pools
from llmasos_edge.kernel.processor import Phase, Processor
from llmasos_edge.kernel.relief import Relief
from llmasos_edge.kernel.scheduling.batch import Targets
from llmasos_edge.kernel.scheduling.lengths import Lengths
from llmasos_edge.kernel.scheduling.scheduler import Scheduler
from llmasos_edge.kernel.seats import Seats
from llmasos_edge.kernel.swapper import Swapper
from llmasos_edge.kernel.task import Outcome, State, Task
from llmasos_edge.kernel.task_table import TaskTable
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.turns import Turns
from llmasos_edge.kernel.units import Bytes, ClientId, Milliseconds, ModelId, TaskId
from llmasos_edge.kernel.workers import Workers

IDLE_MS: Final = 1_000
COMPACT_STEP: Final = Bytes(8 << 20)  # bytes moved at once: some milliseconds
COMPACT_EVERY_MS: Final = 50


@dataclass(slots=True)
class Kernel:
    """The kernel's parts, as the composition root puts them together.

    `scheduler` and `targets` may be replaced at any moment on the kernel's thread: the next dispatch goes by them.
    """

    table: TaskTable
    scheduler: Scheduler
    swapper: Swapper
    loader: Loader
    trace: Trace
    targets: Targets
    userland: hal.Userland


class Dispatcher:
    """Not thread-safe: one thread calls `handle`, `tick` and `dispatch`, and the system calls."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel: Final = kernel
        self.turns: Final = Turns()
        self.workers: Final = Workers(kernel.loader, kernel.swapper, kernel.table, kernel.trace, self)
        self._seats = Seats(kernel.table, kernel.swapper, kernel.trace)
        self._pools = Pools(kernel.loader, self._seats, kernel.trace)
        self.relief: Final = Relief(kernel.loader, kernel.swapper, self._pools, self.workers, kernel.trace)
        self._leases = Leases(kernel.loader, kernel.trace)
        self._lengths = Lengths()
        self._worked = False  # since the arena was compacted last
        self._compact_at: Milliseconds | None = None
        self._deadlines: list[tuple[Milliseconds, TaskId]] = []

    # ---- tasks come and go

    def enter(self, task: Task, now: Milliseconds) -> None:
        """A new task: it waits for its session's turn, or is prepared."""
        if task.deadline_at is not None:
            heappush(self._deadlines, (task.deadline_at, task.id))
        task.predicted = self._lengths.predict(task.submission)
        self.processor(task.model).live += 1
        self.turns.enter(task)
        if self.turns.is_first(task):
            self.prepare(task, now)
        else:
            task.move(State.BLOCKED, now, "session")

    def prepare(self, task: Task, now: Milliseconds) -> None:
        processor = self.processor(task.model)
        if task.state is not State.BLOCKED:
            task.move(State.BLOCKED, now, "model")
        task.reason = "model"
        processor.use(task.priority, now)
        processor.newcomers.wait(task)

    def end(self, task: Task, outcome: Outcome, now: Milliseconds) -> None:
        """From any state: everything that the task holds goes back, and its callers hear of it."""
        processor = self.processor(task.model)
        processor.urgent |= task.state is State.RUNNING and outcome.error is not None
        turn = task.submission.turn and task.submission.session is not None
        if turn and outcome.error is None and task.state is State.RUNNING:
            self._seats.keep(processor, task)
        self.leave(processor, task)
        if task.prepared or task.preparing:
            processor.stop_preparing(task, now)
            processor.worker.forget(task.id)
        task.prepared = task.preparing = False
        self.kernel.swapper.release(task, now, goes_on=outcome.error is None)
        processor.live -= 1
        if task.suspect:
            processor.suspects.remove(task)
            task.suspect = False
            processor.changed = True
        if outcome.error is None:
            self._lengths.learn(task)
            processor.learn(task)
        task.outcome, task.ended_ms = outcome, now
        task.move(State.TERMINATED, now)
        self.kernel.table.reap(task)
        error = outcome.error
        self.kernel.trace.record(now, "task.ended", task=task.id, outcome=error.code if error else "ok")
        self.kernel.userland.ended(task)
        following = self.turns.leave(task)
        if following is not None and following.state is State.BLOCKED:
            self.prepare(following, now)

    def leave(self, processor: Processor, task: Task) -> None:
        """Take the task off the queue that it is on, and its sequence away."""
        if task.state is State.READY:
            processor.ready.remove(task)
        elif task.sequence is not None:
            processor.give_sequence(task)
        else:
            processor.newcomers.leave(task)

    def suspend(self, task: Task, now: Milliseconds) -> None:
        """Its tokens stay; its KV state is parked if it ran and there is room."""
        processor = self.processor(task.model)
        if task.state is State.RUNNING:
            self._seats.switch_out(processor, task)
        elif task.state is State.READY:
            processor.ready.remove(task)
        else:
            processor.newcomers.leave(task)
        task.move(State.SUSPENDED, now)

    def resume(self, task: Task, now: Milliseconds) -> None:
        if not self.turns.is_first(task):
            task.move(State.BLOCKED, now, "session")
        elif task.prepared:
            task.move(State.READY, now)
            self.processor(task.model).enqueue(task)
        elif task.preparing:
            task.move(State.NEW, now)
        else:
            self.prepare(task, now)

    # ---- what the world reports

    def handle(self, event: hal.Event, now: Milliseconds) -> None:
        match event:
            case hal.Loading() | hal.Loaded() | hal.Measured() | hal.Resized():
                self.kernel.loader.heard(event, now)
            case hal.Died():
                if not self.kernel.loader.gone(event.model):
                    self.workers.died(self.processor(event.model), event.why, now)
            case hal.Report():
                raise Panic("Dispatcher.handle: a report needs its model: call `report`")
            case hal.Saved():
                self._saved(event)
            case hal.Restored():
                self._restored(event)
            case hal.Prepared() | hal.Refused() | hal.Finished():
                task = self.kernel.table.find(event.task)
                if task is not None and task.live:
                    self._task_event(task, event, now)

    def _task_event(self, task: Task, event: hal.Prepared | hal.Refused | hal.Finished, now: Milliseconds) -> None:
        match event:
            case hal.Prepared():
                self._prepared(task, event, now)
            case hal.Refused():
                self.processor(task.model).stop_preparing(task, now)
                task.preparing = False
                self.end(task, Outcome(error=from_wire(event.error)), now)
            case hal.Finished():
                error = from_wire(event.error) if event.error else None
                if task.prepared:  # else it is the late word of a worker that was dropped
                    self.end(task, Outcome(event.finish_reason, event.data, error), now)

    def _prepared(self, task: Task, event: hal.Prepared, now: Milliseconds) -> None:
        processor, prompt_tokens = self.processor(task.model), event.prompt_tokens
        if not processor.stop_preparing(task, now):
            return
        task.preparing, task.prepared, task.prompt_tokens = False, True, prompt_tokens
        task.prefix, task.shared = event.prefix, event.shared
        state = self.kernel.swapper.claim(task, self.kernel.loader.machine.fingerprint(task.model), now)
        task.computed = min(state.end, prompt_tokens)
        context = processor.limits.context
        if prompt_tokens >= context:
            text = f"the prompt has {prompt_tokens} tokens, and the context of {task.model} holds {context}: shorten it"
            counts = {"prompt_tokens": prompt_tokens, "context": context}
            self.end(task, Outcome(error=PromptTooLong(text, details=counts)), now)
        elif task.state is State.NEW:
            if self.kernel.scheduler.promises and (refusal := self._seats.refusal(processor, task, now)):
                self.end(task, Outcome(error=refusal), now)
                return
            task.move(State.READY, now)
            processor.enqueue(task)

    def _saved(self, event: hal.Saved) -> None:
        state = self.kernel.swapper.saved(event)
        if state is None:
            return
        self.processor(state.model).saving -= 1
        task = None if state.task is None else self.kernel.table.find(state.task)
        if task is not None and event.size == 0:
            task.computed = state.end

    def _restored(self, event: hal.Restored) -> None:
        self.kernel.swapper.restored(event)
        task = self.kernel.table.find(event.task)
        if task is not None and task.sequence is not None:
            task.computed = max(task.computed, min(event.kept, task.tokens))

    def swapped(self, event: SwapEvent) -> None:
        """The swap device has done something."""
        state = self.kernel.swapper.swap_event(event)
        task = None if state is None or state.task is None else self.kernel.table.find(state.task)
        if task is not None and task.arriving:
            self._seats.arrived(self.processor(task.model), task)

    def report(self, model: ModelId, report: hal.Report, now: Milliseconds) -> None:
        processor = self.processor(model)
        if processor.phase is not Phase.LOADED:
            return  # it was dropped meanwhile
        lease = processor.grants.confirm(report.number)
        if lease is not None and not report.aborted:
            rates = processor.speeds.with_threads(lease.threads)
            rates.learn(report.steps, report.decoded, report.prefilled, report.busy_ms)
        processor.account(report.busy_ms)
        processor.used_at = now
        if report.steps and not report.aborted:
            processor.interrupted = False
        served: Counter[ClientId] = Counter()
        for progress in report.progress:
            task = self.kernel.table.find(progress.task)
            if task is not None and task.prepared:
                served[task.submission.client] += max(0, progress.generated - task.generated)
                self._progress(task, progress, now)
        for client, tokens in served.items():
            processor.charge(client, 0, tokens)
        if report.idle and report.number == processor.numbers:
            processor.quantum = processor.expect_by = None
            processor.grants.clear()
        else:
            processor.expect(now)

    def _progress(self, task: Task, progress: hal.Progress, now: Milliseconds) -> None:
        if task.state is State.RUNNING or (
            task.kv is not None and task.kv.saving is not None
        ):  # else it was lost since
            task.computed = progress.computed
        task.generated, task.cached_tokens = progress.generated, progress.cached
        if progress.generated and task.first_token_ms is None:
            task.first_token_ms = now
        if progress.text:
            task.text += progress.text
            self.kernel.userland.delta(task, progress.text)

    # ---- time

    def tick(self, now: Milliseconds) -> None:
        """Deadlines, and workers that no longer answer."""
        while self._deadlines and self._deadlines[0][0] <= now:
            task = self.kernel.table.find(heappop(self._deadlines)[1])
            if task is not None and task.live:
                late = DeadlineExceeded(
                    "the deadline passed before the answer was whole", details={"text": "".join(task.text)}
                )
                self.end(task, Outcome(error=late), now)
        if self._compact_at is not None and self._compact_at <= now:
            moved = self.kernel.swapper.segments.compact(COMPACT_STEP)
            self._compact_at = Milliseconds(now + COMPACT_EVERY_MS) if moved else None
        self.workers.check_hung(now)

    def next_tick(self) -> Milliseconds | None:
        """The moment at which `tick` has something to do; None: not before the next event."""
        moments = [self._deadlines[0][0]] if self._deadlines else []
        if self._compact_at is not None:
            moments.append(self._compact_at)
        if self.kernel.loader.next_plan is not None:
            moments.append(self.kernel.loader.next_plan)
        for processor in self.processors():
            moments += [by for by in (processor.expect_by, processor.prepare_by) if by is not None]
        return min(moments, default=None)

    # ---- dispatch

    def dispatch(self, now: Milliseconds) -> None:
        """Load what is waited for, seat who may run, and renew every lease that needs it."""
        if not self._pools.make_room(now):
            self.workers.make_resident(self.kernel.targets.model_wait_ms, now)
        for processor in self.processors():
            if processor.phase is Phase.LOADED:
                if not processor.draining:
                    self.workers.prepare_waiting(processor, now)
                processor.quantum_ms = self.kernel.targets.quantum_ms
                self._seats.fill(processor, self.kernel.scheduler, now)
                self._pools.grow(processor, now)
            processor.note_turn(now)
        self._leases.renew(self.kernel.targets, now)
        self._await_idleness(now)

    def _await_idleness(self, now: Milliseconds) -> None:
        """The arena is compacted when nothing has been computed for a while."""
        if any(processor.busy for processor in self.processors()):
            self._worked, self._compact_at = True, None
        elif self._worked:
            self._worked, self._compact_at = False, Milliseconds(now + IDLE_MS)

    # ---- who is there

    def processor(self, model: ModelId) -> Processor:
        """Raises UnknownModel."""
        processor = self.kernel.loader.processor(model)
        if processor is None:
            known = ", ".join(sorted(each.model for each in self.processors()))
            raise UnknownModel(f"there is no model {model!r} on this node: it has {known or 'none'}")
        return processor

    def processors(self) -> Iterator[Processor]:
        return self.kernel.loader.processors()

    def check_invariants(self) -> None:
        self.kernel.table.check_invariants()
        self.kernel.swapper.check_invariants()
        self.kernel.loader.ledger.check_invariants()
        for processor in self.processors():
            processor.check_invariants()
