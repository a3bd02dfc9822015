"""Composes one quantum: decoding sequences first, then prefill chunks within the time target (Sarathi-Serve, 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llmasos_edge.kernel.hal import Quantum, Slot
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds, Tokens

BATCH: Final = 512  # tokens of the largest step: the context's n_batch
CHUNK_MIN: Final = 16
SMOOTHING: Final = 0.3  # weight of the newest measurement
STEP_MAX_MS: Final = 1000.0  # no step is meant to be longer: so long may another model's first task have to wait


@dataclass(slots=True)
class Rates:
    """Measured cost of a step: milliseconds to decode once for all sequences, and for each prefilled token."""

    step_ms: float = 20.0
    prefill_ms: float = 4.0
    width: float = 0.0  # sequences of the steps that `step_ms` was measured on; 0: none yet

    def learn(self, steps: int, prefilled: int, decoded: int, busy_ms: float) -> None:
        if steps and not prefilled:
            width = decoded / steps
            weight = SMOOTHING if alike(width, self.width) else 1.0
            self.step_ms += weight * (busy_ms / steps - self.step_ms)
            self.width = width
        elif prefilled >= CHUNK_MIN:
            cost = max(0.01, (busy_ms - (steps - 1) * self.step_ms) / prefilled)
            self.prefill_ms += SMOOTHING * (cost - self.prefill_ms)

    def scaled(self, factor: float) -> "Rates":
        return Rates(self.step_ms * factor, self.prefill_ms * factor)

    def expected_ms(self, steps: int, prefill: int) -> float:
        return steps * self.step_ms + prefill * self.prefill_ms


def alike(one: float, other: float) -> bool:
    """What was measured on steps of so many sequences may be compared."""
    return abs(one - other) <= 0.25 * max(one, other)


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
    slots = []
    for task in ordered:
        left = Tokens(min(share, task.submission.max_tokens - task.generated))
        task.granted = Tokens(prompts[task.id] + left)
        slots.append(Slot(task.id, Tokens(prompts[task.id]), left))
    chunk, beside = (_chunk(longest, rates) for longest in (STEP_MAX_MS, targets.decode_ms))
    return Quantum(number, tuple(slots), chunk, targets.quantum_ms, threads, beside)


def _chunk(longest_ms: float, rates: Rates) -> Tokens:
    """So many prompt tokens that a step takes no longer, also where others decode in it."""
    return Tokens(max(CHUNK_MIN, min(BATCH, int((longest_ms - rates.step_ms) / rates.prefill_ms))))
