"""The simulated engine: a worker that obeys as a real one does, without a model, a thread or a wall clock."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from typing import Final

from llmasos_edge.engine.simulated_work import Fault, SimulatedProgram, Tally, Work
from llmasos_edge.errors import Panic
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Bytes, ModelId, SegmentId, SequenceId, TaskId, Tokens

STEP_TOKENS: Final = 512
STATE_HEADER: Final = 1024  # bytes of a saved state beside its cells
Deliver = Callable[[ModelId, hal.Event], None]


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """What a step costs: `step_ms`, and more for each token that it generates, for each prompt token, and for each cell
    that a generated or a prompt token attends to. A mute one tells no text.

    It reports every `report_ms` (by default as the real stepper does); a first token, an end or an abort at once.
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
    mute: bool = False
    report_ms: float = 40.0

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


class SimulatedEngine:
    """One worker. A front prepares prompts one after another; a computer takes commands at step boundaries only."""

    def __init__(self, name: ModelId, model: SimulatedModel, timeline: Timeline, deliver: Deliver) -> None:
        self._name, self._model, self._timeline, self._deliver = name, model, timeline, deliver
        self.alive = True
        self.corrupt: set[SegmentId] = set()  # whose checksum is wrong
        self._cells = model.limits.cells
        self._works: dict[TaskId, Work] = {}
        self._seated: dict[SequenceId, Work] = {}
        self._front: deque[Work] = deque()
        self._unwanted: set[TaskId] = set()  # forgotten while they were still being prepared
        self._inbox: list[Callable[[], None]] = []
        self._waking = False
        self._lease: hal.Quantum | None = None
        self._leased: list[Work] = []
        self._ends_at = self._reported_at = 0.0
        self._batch: list[tuple[Work, int]] = []  # the step that is being computed
        self._steps = 1  # and as many like it, one after another, unless somebody interferes
        self._began_at = 0.0
        self._step_ms = 0.0
        self._computing = 0  # numbers what is computed
        self._tally = Tally()

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
        self._front.append(Work(task.id, program, limit))
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
            self._account(self._steps_done())
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
        """It is obeyed when the step in hand is done, however many like it were to come."""
        self._inbox.append(command)
        if self._batch:
            steps = self._steps_done() + 1
            if steps < self._steps:
                self._compute(steps)
        elif not self._waking:
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
        if self._seated:
            raise Panic(f"SimulatedEngine.resize: tasks of {self._name} have sequences")
        self._cells = cells
        self._send(hal.Resized(self._name, cells, 0.0))

    def _switch_in(self, task: TaskId, sequence: SequenceId, pieces: tuple[hal.Piece, ...]) -> None:
        work = self._works[task]
        if sequence in self._seated or work.sequence is not None:
            raise Panic(f"SimulatedEngine.switch_in: sequence {sequence} for {task} is taken")
        self._seated[sequence] = work
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
        del self._seated[work.sequence]
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
        if work.sequence is not None:
            del self._seated[work.sequence]

    def _remove(self, work: Work) -> None:
        """Out of the lease: what it did is reported first."""
        if work in self._leased:
            self._report(idle=False)
            self._leased.remove(work)
        self._tally.touched.pop(work.task, None)

    # ---- steps

    def _compose(self, chunk: int) -> list[tuple[Work, int]]:
        """Who computes how many tokens: every decode first, then prefill in the order of the lease; or nobody but those
        who are hurried.
        """
        hurried = [work for work in self._leased if work.hurried]
        pending = [(work, work.pending) for work in hurried or self._leased if work.runnable]
        batch = [(work, 1) for work, tokens in pending if tokens == 1]
        left = STEP_TOKENS if hurried else min(chunk, STEP_TOKENS - len(batch))
        for work, tokens in pending if len(batch) < len(pending) else ():
            count = min(left, tokens, work.prefill_left)
            if tokens > 1 and count > 0:
                batch.append((work, count))
                left -= count
        return batch

    def _begin_step(self, batch: list[tuple[Work, int]]) -> None:
        self._batch, self._began_at = batch, self._timeline.now
        used = sum(work.computed for work in self._seated.values())
        wanted = sum(count for _, count in batch)
        if used + wanted > self._cells:
            self.die(f"no room in the pool for {wanted} tokens")
            return
        faults = [fault for work, _ in batch if (fault := work.fault())]
        if Fault.HANG in faults:
            return
        prefill = any(count > 1 or count < work.pending for work, count in batch)
        self._step_ms = self._model.costs((work.computed, count, count == work.pending) for work, count in batch)
        if faults:
            self._timeline.plan(self._step_ms, self._crash)
            return
        most = 1 if prefill else min((self._cells - used) // wanted, *(work.alike() for work, _ in batch))
        self._compute(self._unheard(most))

    def _unheard(self, most: int) -> int:
        """So many steps until the lease ends or a report is due, and at most so many."""
        steps, now = 1, self._timeline.now + self._step_ms
        while steps < most and now < self._ends_at and now - self._reported_at < self._model.report_ms:
            steps, now = steps + 1, now + self._step_ms
        return steps

    def _compute(self, steps: int) -> None:
        """So many steps of this batch, from when the first of them began."""
        self._steps = steps
        self._computing += 1
        ends_at = self._began_at
        for _ in range(steps):
            ends_at += self._step_ms
        self._timeline.plan(ends_at - self._timeline.now, partial(self._complete, self._computing))

    def _steps_done(self) -> int:
        """Of those that are being computed; never the last one."""
        done, ends_at = 0, self._began_at + self._step_ms
        while done < self._steps - 1 and ends_at <= self._timeline.now:
            done, ends_at = done + 1, ends_at + self._step_ms
        return done

    def _crash(self) -> None:
        self.die("killed by SIGSEGV")

    def _end_step(self) -> None:
        self._computing += 1
        self._batch = []
        self._tally.busy_ms += self._timeline.now - self._began_at

    def _complete(self, computing: int) -> None:
        if not self.alive or computing != self._computing:
            return
        self._account(self._steps)
        finished = [work for work, _ in self._batch if work.finished]
        self._end_step()
        if finished:
            self._report(idle=False)
        for work in finished:
            self._send(hal.Finished(work.task, work.finished))
        if self._tally.urgent or self._timeline.now - self._reported_at >= self._model.report_ms:
            self._report(idle=False)
        self._boundary()

    def _account(self, steps: int) -> None:
        """So many steps of the batch are done."""
        self._tally.steps += steps
        for work, count in self._batch if steps else ():
            complete = count == work.pending
            work.computed += count + steps - 1
            self._tally.touched[work.task] = work
            if count > 1 or not complete:
                self._tally.prefilled += count
                work.prefill_left -= count
            if complete:
                self._tally.decoded += steps
                self._tally.urgent |= work.generated == 0
                work.finished = work.generate(steps, mute=self._model.mute)
                self._tally.urgent |= bool(work.finished)

    def _report(self, *, idle: bool) -> None:
        if self._lease is None or not (idle or self._tally.steps or self._tally.aborted):
            return
        self._send(self._tally.report(self._lease.number, idle=idle))
        self._tally = Tally()
        self._reported_at = self._timeline.now

    def _send(self, event: hal.Event) -> None:
        self._deliver(self._name, event)
