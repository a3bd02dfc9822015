"""Seats: who holds a model's sequences. Asks the policy, and switches tasks in and out as it decides."""

from llmasos_edge.errors import DeadlineExceeded, Panic
from llmasos_edge.kernel.memory.kv_state import KvState
from llmasos_edge.kernel.processor import Processor
from llmasos_edge.kernel.scheduling.deadline import earliest
from llmasos_edge.kernel.scheduling.forecast import broken, ends, promised
from llmasos_edge.kernel.scheduling.scheduler import Admit, Keep, Preempt, Scheduler
from llmasos_edge.kernel.swapper import Swapper
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.task_table import TaskTable
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Milliseconds, TaskId, Tokens


class Seats:
    """Not thread-safe: on the kernel's thread, for the dispatcher."""

    def __init__(self, table: TaskTable, swapper: Swapper, trace: Trace) -> None:
        self._table, self._swapper, self._trace = table, swapper, trace

    def fill(self, processor: Processor, scheduler: Scheduler, now: Milliseconds) -> None:
        """Seat who may run, until the policy says Keep."""
        running = processor.running
        processor.ready.order_by(scheduler)
        while processor.overcommitted():
            victim = min(running.values(), key=lambda task: (task.priority, -task.order))
            self._preempt(processor, victim, now)
        suspect = processor.quarantined
        if suspect and suspect.state is State.READY and processor.can_seat(suspect):
            self._switch_in(processor, suspect, now)
        while not suspect:
            decision = scheduler.next(processor.ready, list(running.values()), processor, now)
            match decision:
                case Admit():
                    self._switch_in(processor, self._table.get(decision.task), now)
                case Preempt():
                    for loser in decision.victims:
                        self._preempt(processor, self._table.get(loser), now, by=decision.by)
                    self._switch_in(processor, self._table.get(decision.by), now)
                case Keep():
                    return

    def _switch_in(self, processor: Processor, task: Task, now: Milliseconds) -> None:
        if all(task.priority > other.priority for other in processor.running.values()):
            processor.urgent = True
        processor.ready.remove(task)
        processor.take_sequence(task)
        if task.first_run_ms is None:
            processor.charge(task.submission.client, task.prompt_tokens, 0)
        task.move(State.RUNNING, now)
        self._trace.record(now, "task.seated", task=task.id, model=processor.model)
        task.arriving = self._swapper.swap_in(_state(task), processor.rates.prefill_ms)
        if not task.arriving:
            self.arrived(processor, task)

    def arrived(self, processor: Processor, task: Task) -> None:
        """All of its state that can be had is in the arena: the worker may have it."""
        if task.sequence is None:
            raise Panic(f"Seats.arrived: {task.id} has no sequence")
        pieces = self._swapper.pieces(_state(task))
        task.arriving, task.computed = False, Tokens(0)  # what of the pieces agrees with its tokens, the worker knows
        _state(task).resident = processor.changed = True
        processor.worker.switch_in(task.id, task.sequence, pieces)

    def _preempt(self, processor: Processor, task: Task, now: Milliseconds, by: TaskId | None = None) -> None:
        self.set_aside(processor, task, now)
        task.preemptions += 1
        self._trace.record(now, "task.preempted", task=task.id, by=by)

    def set_aside(self, processor: Processor, task: Task, now: Milliseconds) -> None:
        """Its state is saved, and it goes on as soon as it can."""
        self.switch_out(processor, task)
        task.move(State.READY, now)
        processor.enqueue(task)

    def switch_out(self, processor: Processor, task: Task) -> None:
        """Save the state if the arena has room for all that the lease may have added; else it is recomputed."""
        state = _state(task)
        processor.give_sequence(task)
        state.resident = False
        if task.arriving:
            task.arriving = False
            return
        save = self._swapper.save(state, Tokens(task.computed + task.granted), processor.limits.cell_bytes)
        processor.saving += save is not None
        processor.worker.switch_out(task.id, save)
        task.granted = Tokens(0)
        if save is None:
            task.computed = state.end

    def keep(self, processor: Processor, task: Task) -> None:
        """Its session goes on from here: save what it has computed, if the arena has room. It has ended."""
        state = _state(task)
        save = None if task.arriving else self._swapper.save(state, task.tokens, processor.limits.cell_bytes)
        if save is not None:
            processor.saving += 1
            processor.worker.switch_out(task.id, save)

    def refusal(self, processor: Processor, task: Task, now: Milliseconds) -> DeadlineExceeded | None:
        """Why the task can't be promised its deadline: it would not make it, or another of its class no longer would.

        Counted is all that each may generate, and who has to be served before; lower classes are not asked.
        """
        if task.deadline_at is None:
            return None
        running = [each for each in processor.running.values() if each.priority >= task.priority]
        others = [each for each in processor.ready if each.priority >= task.priority]
        waiting = sorted([*others, task], key=lambda each: (-each.priority, earliest(each)))
        order = [*running, *waiting]
        at = order.index(task)
        costs = [processor.cost(each, each.submission.max_tokens) for each in order]
        after = ends(costs, processor.limits.sequences)
        expected = promised(after[at])
        if now + expected > task.deadline_at:
            text = f"it would take {expected / 1000:.1f} s, and there are {(task.deadline_at - now) / 1000:.1f}"
            return _refused(f"{text}: ask for fewer max_tokens, or a later deadline", expected)
        before = ends(costs[:at] + costs[at + 1 :], processor.limits.sequences)
        lost = broken(order[:at] + order[at + 1 :], before, after[:at] + after[at + 1 :], now)
        if lost:
            return _refused(f"{len(lost)} tasks would miss theirs: ask again later", expected)
        return None


def _state(task: Task) -> KvState:
    if task.kv is None:
        raise Panic(f"Seats: {task.id} was never prepared")
    return task.kv


def _refused(why: str, expected_ms: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"its deadline can't be met: {why}", details={"text": "", "expected_ms": int(expected_ms)})
