"""The simulated engine: a worker that obeys as a real one does, without a model, a thread or a wall clock."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from heapq import heappop, heappush
from typing import Final

from llmasos_edge.errors import Panic
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Bytes, ModelId, SegmentId, SequenceId, TaskId, Tokens

REPORT_EVERY_MS: Final = 40  # as the real stepper: but a first token, an end or an abort is told at once
STEP_TOKENS: Final = 512
STATE_HEADER: Final = 1024  # bytes of a saved state beside its cells
Deliver = Callable[[ModelId, hal.Event], None]


class Fault(Enum):
    DIE = "die"
    HANG = "hang"


@dataclass(frozen=True, slots=True)
class SimulatedProgram:
    """A prompt of so many tokens, and an answer that stops by itself after so many.

    `preparing` and `running` are faults that it inflicts on its worker; the latter in the first step after
    `fault_at` tokens were generated. `refusal` is the wire form of an error. What its session has saved agrees with its
    first `agrees` tokens (None: with all that are there); its worker has the first `cached` of its prompt from others.
    """

    prompt: int
    answer: int
    preparing: Fault | None = None
    running: Fault | None = None
    fault_at: int = 0
    refusal: dict[str, object] | None = None
    agrees: int | None = None
    cached: int = 0


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """What a step costs: `step_ms`, and more for each token that it generates, for each prompt token, and for each cell
    that a generated or a prompt token attends to.
    """

    limits: hal.Limits
    weights: Bytes = Bytes(64 << 20)
    step_ms: float = 10.0
    generate_ms: float = 0.0
    prefill_ms: float = 1.0
    generate_cell_us: float = 0.0
    prefill_cell_us: float = 0.0
    prepare_ms: float = 1.0
    load_ms: float = 100.0

    def costs(self, batch: Iterable[tuple[int, int, bool]]) -> float:
        """Milliseconds of a step: for each task the tokens it has computed, those it computes, and whether that
        generates one.
        """
        took, cells_us = self.step_ms, 0.0
        for computed, count, generates in batch:
            if generates:
                took += self.generate_ms
            if count == 1 and generates:
                cells_us += self.generate_cell_us * computed
            else:
                took += self.prefill_ms * count
                cells_us += self.prefill_cell_us * count * (computed + count / 2)
        return took + cells_us / 1000


def answer_text(tokens: int) -> str:
    """What a program has said after so many generated tokens."""
    return "".join(f"{n} " for n in range(tokens))


class Timeline:
    """A manual clock and its future. What is planned for one moment happens in the order of planning."""

    def __init__(self) -> None:
        self.now = 0.0
        self._planned = 0
        self._future: list[tuple[float, int, Callable[[], None]]] = []

    def plan(self, delay_ms: float, happening: Callable[[], None]) -> None:
        self._planned += 1
        heappush(self._future, (self.now + delay_ms, self._planned, happening))

    @property
    def next_moment(self) -> float | None:
        return self._future[0][0] if self._future else None

    def happen(self) -> None:
        """Move the clock to the next moment, and let its first happening happen."""
        self.now, _, happening = heappop(self._future)
        happening()


@dataclass(slots=True, eq=False)
class _Work:
    """A task inside a simulated worker (as engine.work.Work)."""

    task: TaskId
    program: SimulatedProgram
    limit: int
    sequence: SequenceId | None = None
    generated: int = 0
    computed: int = 0
    cached: int = 0
    unsent: list[str] = field(default_factory=list)
    finished: bool = False
    prefill_left: int = 0
    decode_left: int = 0
    alone: bool = False

    @property
    def pending(self) -> int:
        return self.tokens - self.computed

    @property
    def tokens(self) -> int:
        return self.program.prompt + self.generated

    @property
    def runnable(self) -> bool:
        return not self.finished and self.sequence is not None and (self.decode_left > 0 or self.pending > 1)

    @property
    def hurried(self) -> bool:
        return self.alone and self.runnable and self.pending > 1 and self.prefill_left > 0

    def progress(self) -> hal.Progress:
        text = tuple(self.unsent)
        self.unsent.clear()
        return hal.Progress(self.task, Tokens(self.computed), Tokens(self.generated), Tokens(self.cached), text)

    def fault(self) -> Fault | None:
        """What it does to its worker in a step now."""
        return self.program.running if self.generated >= self.program.fault_at else None


class _Tally:
    """What a worker did since its last report."""

    def __init__(self) -> None:
        self.touched: dict[TaskId, _Work] = {}
        self.steps = self.prefilled = self.decoded = 0
        self.busy_ms = 0.0
        self.aborted = self.urgent = False

    def report(self, number: int, *, idle: bool) -> hal.Report:
        progress = tuple(work.progress() for work in self.touched.values())
        counts = (self.steps, Tokens(self.prefilled), Tokens(self.decoded), self.busy_ms)
        return hal.Report(number, progress, *counts, idle, self.aborted)


class SimulatedEngine:
    """One worker. A front prepares prompts one after another; a computer takes commands at step boundaries only."""

    def __init__(self, name: ModelId, model: SimulatedModel, timeline: Timeline, deliver: Deliver) -> None:
        self._name, self._model, self._timeline, self._deliver = name, model, timeline, deliver
        self.alive = True
        self.corrupt: set[SegmentId] = set()  # whose checksum is wrong
        self._cells = model.limits.cells
        self._works: dict[TaskId, _Work] = {}
        self._front: deque[_Work] = deque()
        self._unwanted: set[TaskId] = set()  # forgotten while they were still being prepared
        self._inbox: list[Callable[[], None]] = []
        self._waking = False
        self._lease: hal.Quantum | None = None
        self._leased: list[_Work] = []
        self._ends_at = self._reported_at = 0.0
        self._batch: list[tuple[_Work, int]] = []  # the step that is being computed
        self._began_at = 0.0
        self._step = 0
        self._ended: list[hal.Finished] = []  # in this step
        self._tally = _Tally()

    @property
    def tasks(self) -> frozenset[TaskId]:
        """Those it holds something of."""
        return frozenset({*self._works, *(work.task for work in self._front)}) - self._unwanted

    # ---- Engine, for the kernel

    def prepare(self, task: Task) -> None:
        program = task.submission.program
        if not isinstance(program, SimulatedProgram):
            raise Panic(f"SimulatedEngine.prepare: {task.id} has a {type(program).__name__}")
        limit = min(task.submission.max_tokens, self._model.limits.context - program.prompt)
        self._front.append(_Work(task.id, program, limit))
        if len(self._front) == 1:
            self._timeline.plan(self._model.prepare_ms, self._prepared)

    def switch_in(self, task: TaskId, sequence: SequenceId, pieces: tuple[hal.Piece, ...]) -> None:
        self._put(partial(self._switch_in, task, sequence, pieces))

    def switch_out(self, task: TaskId, save: hal.Save | None) -> None:
        self._put(partial(self._switch_out, task, save))

    def resize(self, cells: Tokens) -> None:
        self._put(partial(self._resize, cells))

    def grant(self, quantum: hal.Quantum) -> None:
        self._put(partial(self._take_lease, quantum))

    def forget(self, task: TaskId) -> None:
        self._put(partial(self._forget, task))

    def interrupt(self) -> None:
        """The boundary that it makes finds the commands given before it, and only those."""
        if self._batch:
            self._tally.aborted = True
            self._end_step()
            self._report(idle=False)
            self._boundary()

    def stop(self) -> None:
        self.die("it was told to end")

    def kill(self) -> None:
        self.die("killed by SIGKILL")

    def die(self, why: str) -> None:
        if self.alive:
            self.alive = False
            self._send(hal.Died(self._name, why))

    # ---- the front

    def _prepared(self) -> None:
        if not self.alive:
            return
        work = self._front[0]
        if work.program.preparing is Fault.DIE:
            self.die(f"{work.task} killed it while being prepared")
        if work.program.preparing is not None:
            return
        self._front.popleft()
        if work.program.refusal is not None:
            self._unwanted.discard(work.task)
            self._send(hal.Refused(work.task, work.program.refusal))
        elif work.task in self._unwanted:
            self._unwanted.discard(work.task)
        else:
            self._works[work.task] = work
            self._send(hal.Prepared(work.task, Tokens(work.program.prompt)))
        if self._front:
            self._timeline.plan(self._model.prepare_ms, self._prepared)

    # ---- commands, at a step boundary

    def _put(self, command: Callable[[], None]) -> None:
        self._inbox.append(command)
        if not self._batch and not self._waking:
            self._waking = True
            self._timeline.plan(0, self._boundary)

    def _boundary(self) -> None:
        """Obey what has come, and begin the next step of the lease, or end the lease."""
        self._waking = False
        if not self.alive or self._batch:
            return
        commands, self._inbox = self._inbox, []
        for command in commands:
            command()
        if self._lease is None:
            return
        batch = [] if self._timeline.now >= self._ends_at else self._compose(self._lease.chunk)
        if batch:
            self._begin_step(batch)
        else:
            self._report(idle=True)
            self._lease = None

    def _take_lease(self, quantum: hal.Quantum) -> None:
        self._report(idle=False)
        self._lease = quantum
        self._ends_at = self._timeline.now + quantum.time_ms
        self._leased = []
        for slot in quantum.slots:
            work = self._works.get(slot.task)
            if work is not None and not work.finished:
                work.prefill_left, work.decode_left, work.alone = slot.prefill, slot.decode, slot.alone
                self._leased.append(work)

    def _resize(self, cells: Tokens) -> None:
        if any(work.sequence is not None for work in self._works.values()):
            raise Panic(f"SimulatedEngine.resize: tasks of {self._name} have sequences")
        self._cells = cells
        self._send(hal.Resized(self._name, cells, 0.0))

    def _switch_in(self, task: TaskId, sequence: SequenceId, pieces: tuple[hal.Piece, ...]) -> None:
        work = self._works[task]
        if any(other.sequence == sequence for other in self._works.values()) or work.sequence is not None:
            raise Panic(f"SimulatedEngine.switch_in: sequence {sequence} for {task} is taken")
        work.sequence, work.computed = sequence, 0
        if pieces:
            agrees = work.tokens if work.program.agrees is None else work.program.agrees
            corrupt = [piece for piece in pieces if piece.segment in self.corrupt][:1]
            kept = min(pieces[-1].end, agrees, *(piece.start for piece in corrupt))
            work.computed = min(kept, work.tokens - 1)
            self._send(hal.Restored(task, Tokens(kept), tuple(piece.segment for piece in corrupt)))
        if work.generated == 0:
            work.computed = work.cached = max(work.computed, min(work.program.cached, work.tokens - 1))

    def _switch_out(self, task: TaskId, save: hal.Save | None) -> None:
        work = self._works[task]
        self._remove(work)
        if work.sequence is None:
            return
        work.sequence = None
        computed, work.computed = work.computed, 0
        if save is None:
            return
        size = (computed - save.start) * self._model.limits.cell_bytes + STATE_HEADER
        size = size if computed > save.start and size <= save.extent.size else 0
        self._send(hal.Saved(save.segment, save.start, Tokens(computed), Bytes(size), checksum=0))

    def _forget(self, task: TaskId) -> None:
        work = self._works.pop(task, None)
        if work is None:
            self._unwanted.add(task)
            return
        self._remove(work)

    def _remove(self, work: _Work) -> None:
        """Out of the lease: what it did is reported first."""
        if work in self._leased:
            self._report(idle=False)
            self._leased.remove(work)
        self._tally.touched.pop(work.task, None)

    # ---- steps

    def _compose(self, chunk: int) -> list[tuple[_Work, int]]:
        """Who computes how many tokens: every decode first, then prefill in the order of the lease; or nobody but those
        who are hurried.
        """
        hurried = [work for work in self._leased if work.hurried]
        batch = [(work, 1) for work in self._leased if work.runnable and work.pending == 1 and not hurried]
        left = STEP_TOKENS if hurried else min(chunk, STEP_TOKENS - len(batch))
        for work in hurried or self._leased:
            count = min(left, work.pending, work.prefill_left)
            if work.runnable and work.pending > 1 and count > 0:
                batch.append((work, count))
                left -= count
        return batch

    def _begin_step(self, batch: list[tuple[_Work, int]]) -> None:
        self._batch, self._began_at = batch, self._timeline.now
        used = sum(work.computed for work in self._works.values() if work.sequence is not None)
        wanted = sum(count for _, count in batch)
        if used + wanted > self._cells:
            self.die(f"no room in the pool for {wanted} tokens")
            return
        faults = [fault for work, _ in batch if (fault := work.fault())]
        if Fault.HANG in faults:
            return
        finish = self._crash if faults else partial(self._complete, self._step)
        costs = self._model.costs((work.computed, count, count == work.pending) for work, count in batch)
        self._timeline.plan(costs, finish)

    def _crash(self) -> None:
        self.die("killed by SIGSEGV")

    def _end_step(self) -> None:
        self._step += 1
        self._batch = []
        self._tally.busy_ms += self._timeline.now - self._began_at

    def _complete(self, step: int) -> None:
        if not self.alive or step != self._step:
            return
        batch = self._batch
        self._end_step()
        self._tally.steps += 1
        for work, count in batch:
            self._account(work, count)
        if self._tally.urgent or self._timeline.now - self._reported_at >= REPORT_EVERY_MS:
            self._report(idle=False)
        for finished in self._ended:  # after the report, which has the last text of all of them
            self._send(finished)
        self._ended.clear()
        self._boundary()

    def _account(self, work: _Work, count: int) -> None:
        complete = count == work.pending
        work.computed += count
        self._tally.touched[work.task] = work
        if count > 1 or not complete:
            self._tally.prefilled += count
            work.prefill_left -= count
        if complete:
            self._generate(work)

    def _generate(self, work: _Work) -> None:
        self._tally.urgent |= work.generated == 0
        self._tally.decoded += 1
        work.decode_left -= 1
        reason = "stop"
        if work.generated < work.program.answer:
            work.unsent.append(f"{work.generated} ")
            work.generated += 1
            reason = "length" if work.generated >= work.limit else ""
        if reason:
            work.finished = self._tally.urgent = True
            self._ended.append(hal.Finished(work.task, reason))

    def _report(self, *, idle: bool) -> None:
        if self._lease is None or not (idle or self._tally.steps or self._tally.aborted):
            return
        self._send(self._tally.report(self._lease.number, idle=idle))
        self._tally = _Tally()
        self._reported_at = self._timeline.now

    def _send(self, event: hal.Event) -> None:
        self._deliver(self._name, event)
