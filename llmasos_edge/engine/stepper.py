"""The compute thread's work: steps over the sequences of a lease, one batch for all of them, and reports of it."""

import time
from collections.abc import Callable
from typing import Final

from llmasos_edge.engine.gang import Gang
from llmasos_edge.engine.kv_pool import KvPool
from llmasos_edge.engine.llama import STEP_TOKENS, LlamaModel
from llmasos_edge.engine.work import Work
from llmasos_edge.errors import EngineFailed
from llmasos_edge.kernel.hal import Quantum, Report
from llmasos_edge.kernel.units import TaskId, Tokens

REPORT_EVERY_S: Final = 0.09  # text is gathered for so long, but a first token or an end is told at once


class Stepper:
    """Holds the lease. `proceed(work)` is called before each step for a task that waits for its prefix or for saved
    state; `finish(work, reason)` when its last token is known.
    """

    def __init__(
        self,
        model: LlamaModel,
        pool: KvPool,
        gang: Gang,
        proceed: Callable[[Work], None],
        send: Callable[[Report], None],
        finish: Callable[[Work, str], None],
    ) -> None:
        self._model, self._pool, self._gang = model, pool, gang
        self._proceed, self._send, self._finish = proceed, send, finish
        self._lease: Quantum | None = None
        self._works: list[Work] = []
        self._touched: dict[TaskId, Work] = {}
        self._ended: list[tuple[Work, str]] = []  # in this step
        self._ends_at = self._reported_at = 0.0
        self._clear()

    def _clear(self) -> None:
        self._steps = self._prefilled = self._decoded = 0
        self._busy_s = 0.0
        self._aborted = self._urgent = False

    @property
    def leased(self) -> bool:
        return self._lease is not None

    def lease(self, quantum: Quantum, works: dict[TaskId, Work]) -> None:
        """Replace the lease at a step boundary."""
        self._report(idle=False)
        self._lease = quantum
        self._ends_at = time.perf_counter() + quantum.time_ms / 1000
        self._works = []
        for slot in quantum.slots:
            work = works.get(slot.task)
            if work is not None and not work.finished:
                work.prefill_left, work.decode_left, work.alone = slot.prefill, slot.decode, slot.alone
                self._works.append(work)

    def remove(self, work: Work) -> None:
        """The task lost its sequence: what it did is reported first."""
        if work in self._works:
            self._report(idle=False)
            self._works.remove(work)
        self._touched.pop(work.task, None)

    def step(self) -> None:
        """Compute one step of the lease, or end it."""
        lease = self._lease
        if lease is None:
            return
        started = time.perf_counter()
        batch = [] if started >= self._ends_at else self._compose(lease.chunk)
        if not batch:
            self._report(idle=True)
            self._lease = None
            return
        entries = [(w.target or 0, w.tokens[w.computed : w.computed + n], w.computed, n == w.pending) for w, n in batch]
        self._pool.context.use_threads(self._gang.threads(lease.threads))
        status = self._pool.decode(entries)
        if status == 1:
            raise EngineFailed(f"no room in the pool for {sum(n for _, n in batch)} tokens")
        if status == 2:
            self._aborted = True
        else:
            self._account(batch)
        now = time.perf_counter()
        self._busy_s += now - started
        self._gang.ran(now - started, lease.threads)
        if self._urgent or now - self._reported_at >= REPORT_EVERY_S or self._aborted:
            self._report(idle=False)
        for work, reason in self._ended:  # after the report, which has the last text of all of them
            self._finish(work, reason)
        self._ended.clear()

    def _compose(self, chunk: int) -> list[tuple[Work, int]]:
        """Who computes how many tokens: every decode first, then prefill in the order of the lease; or nobody but those
        who are hurried.

        Of those who wait for the same prefix the first one computes it, whichever that is in this step.
        """
        for work in self._works:
            if work.sharing or work.pieces:
                self._proceed(work)
        hurried = [work for work in self._works if work.hurried]
        batch = [(work, 1) for work in self._works if work.runnable and work.pending == 1 and not hurried]
        left = STEP_TOKENS if hurried else min(chunk, STEP_TOKENS - len(batch))
        targets = set[int | None]()
        for work in hurried or self._works:
            if work.runnable and work.pending > 1 and work.target not in targets:
                count = min(left, work.ahead, work.prefill_left)
                if count > 0:
                    batch.append((work, count))
                    left -= count
                    targets.add(work.target)
        return batch

    def _account(self, batch: list[tuple[Work, int]]) -> None:
        self._steps += 1
        index = -1
        for work, count in batch:
            index += count
            complete = count == work.pending
            work.computed += count
            self._touched[work.task] = work
            if count > 1 or not complete:
                self._prefilled += count
                work.prefill_left -= count
            if complete:
                self._generate(work, index)

    def _generate(self, work: Work, index: int) -> None:
        """Sample the next token of one sequence, and see whether it is the last."""
        token = work.sampler.sample(self._pool.context, index)
        self._urgent |= work.generated == 0
        self._decoded += 1
        work.decode_left -= 1
        reason = ""
        if self._model.ends(token):
            reason = "stop"
        else:
            work.tokens.append(token)
            work.say(work.answer.feed(self._model.piece(token)))
            if work.answer.stopped:
                reason = "stop"
            elif work.generated >= work.limit:
                reason = "length"
        if reason:
            work.say(work.answer.finish())
            work.finished = self._urgent = True
            self._ended.append((work, reason))

    def _report(self, *, idle: bool) -> None:
        if self._lease is None or not (idle or self._steps or self._aborted):
            return
        progress = tuple(work.progress() for work in self._touched.values())
        self._touched.clear()
        counts = (self._steps, Tokens(self._prefilled), Tokens(self._decoded), self._busy_s * 1000)
        self._send(Report(self._lease.number, progress, *counts, idle, self._aborted))
        self._clear()
        self._reported_at = time.perf_counter()
