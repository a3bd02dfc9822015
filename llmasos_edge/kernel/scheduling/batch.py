"""Composes one quantum: decoding sequences first, then prefill chunks within the time target (Sarathi-Serve, 2024).

But a short prompt of a higher class comes before all, alone: its first token need not pay for the others' step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Final

from llmasos_edge.kernel.hal import Quantum, Slot
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds, TaskId, Tokens

BATCH: Final = 512  # tokens of the largest step: the context's n_batch
CHUNK_MIN: Final = 16
SMOOTHING: Final = 0.3  # weight of the newest measurement
BESIDE: Final = 0.25  # what a sequence adds to a step that one takes alone, where nothing better is measured


@dataclass(slots=True)
class Rates:
    """Measured cost of a step: milliseconds to decode once for all sequences, and for each prefilled token.

    `widths`: the former by the number of sequences that decoded; `step_ms` is for as many as it was lately.
    """

    step_ms: float = 20.0
    prefill_ms: float = 4.0
    widths: dict[int, float] = field(default_factory=dict)

    def learn(self, steps: int, decoded: int, prefilled: int, busy_ms: float) -> None:
        if steps and not prefilled:
            took, width = busy_ms / steps, max(1, round(decoded / steps))
            self.step_ms += SMOOTHING * (took - self.step_ms)
            self.widths[width] = self.widths.get(width, took) + SMOOTHING * (took - self.widths.get(width, took))
        elif prefilled >= CHUNK_MIN:
            others = steps if decoded > steps else steps - 1  # in which more decoded than the prompt's own task
            cost = max(0.01, (busy_ms - others * self.step_ms) / prefilled)
            self.prefill_ms += SMOOTHING * (cost - self.prefill_ms)

    def step(self, width: int) -> float:
        """Milliseconds to decode once for so many sequences: by what was measured for the number nearest to it."""
        near = min(self.widths, key=lambda each: abs(log(each / width)), default=1)
        return self.widths.get(near, self.step_ms) * _weight(width) / _weight(near)

    def expected_ms(self, steps: int, prefill: int) -> float:
        return steps * self.step_ms + prefill * self.prefill_ms


def _weight(width: int) -> float:
    return 1 + BESIDE * (width - 1)


@dataclass(frozen=True, slots=True)
class Targets:
    """What the node file says of scheduling, beside the policy."""

    quantum_ms: Milliseconds
    decode_ms: Milliseconds  # of a step that decodes while others prefill
    max_waiting: int = 1024  # live tasks that have no sequence: of the node
    max_waiting_per_client: int = 256
    model_wait_ms: Milliseconds = Milliseconds(
        5_000
    )  # of tasks whose model is not loaded, before a busy one is drained


def compose(number: int, running: Sequence[Task], room: int, rates: Rates, targets: Targets, threads: int) -> Quantum:
    """The lease for `running`, the most urgent first. `room`: cells that none of their tokens needs; each task gets
    an equal share of it beside its prompt, so that the sum of the allowances never exceeds the pool.

    Sets each task's `granted`.
    """
    ordered = sorted(running, key=lambda task: (-task.priority, task.order))
    prompts = {task.id: max(0, task.tokens - task.computed) for task in ordered}
    share = max(0, room) // max(1, len(ordered))
    decodes = any(prompts[task.id] <= 1 for task in ordered)
    prefills = any(prompts[task.id] > 1 for task in ordered)
    alone = _alone(ordered, rates, targets)
    slots = []
    for task in ordered:
        left = Tokens(min(share, task.submission.max_tokens - task.generated))
        task.granted = Tokens(prompts[task.id] + left)
        slots.append(Slot(task.id, Tokens(prompts[task.id]), left, task.id in alone))
    chunk = BATCH
    if decodes and prefills:
        chunk = int((targets.decode_ms - rates.step_ms) / rates.prefill_ms)
    return Quantum(number, tuple(slots), Tokens(max(CHUNK_MIN, min(BATCH, chunk))), targets.quantum_ms, threads)


def _alone(ordered: Sequence[Task], rates: Rates, targets: Targets) -> frozenset[TaskId]:
    """Tasks of the highest class whose prompts hold up the lower ones for no longer than a step beside them may take.
    What they share with others is most likely there already.
    """
    if not ordered or ordered[0].priority == ordered[-1].priority:
        return frozenset()
    highest = [task for task in ordered if task.priority == ordered[0].priority]
    prompts = {task.id: task.tokens - max(task.computed, task.shared) for task in highest}
    longest = max(targets.decode_ms, rates.expected_ms(1, CHUNK_MIN))
    short = rates.prefill_ms * sum(prompts.values()) <= longest
    return frozenset(task for task, pending in prompts.items() if short and pending > 1)
