"""What a simulated worker holds of its tasks: their programs, how far they are, and what is to be reported."""

from dataclasses import dataclass, field
from enum import Enum

from llmasos_edge.kernel import hal
from llmasos_edge.kernel.units import SequenceId, TaskId, Tokens


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


def answer_text(tokens: int) -> str:
    """What a program has said after so many generated tokens."""
    return "".join(f"{n} " for n in range(tokens))


@dataclass(slots=True, eq=False)
class Work:
    """A task inside a simulated worker (as engine.work.Work)."""

    task: TaskId
    program: SimulatedProgram
    limit: int
    sequence: SequenceId | None = None
    generated: int = 0
    computed: int = 0
    cached: int = 0
    unsent: list[str] = field(default_factory=list)
    finished: str = ""  # why
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

    def alike(self) -> int:
        """So many decoding steps are alike, the last one included, which may be the last of all."""
        if self.generated == 0 or self.program.running is not None:
            return 1
        to_come = min(self.program.answer + 1, self.limit) - self.generated
        return min(to_come, self.decode_left)

    def generate(self, steps: int, *, mute: bool) -> str:
        """It decodes so many times; the reason why it ends with that, if it does."""
        self.decode_left -= steps
        told, end = self.generated, self.generated + steps
        self.generated = min(end, self.program.answer)
        if not mute:
            self.unsent += [f"{n} " for n in range(told, self.generated)]
        if end > self.program.answer:
            return "stop"
        return "length" if self.generated >= self.limit else ""


class Tally:
    """What a worker did since its last report."""

    def __init__(self) -> None:
        self.touched: dict[TaskId, Work] = {}
        self.steps = self.prefilled = self.decoded = 0
        self.busy_ms = 0.0
        self.aborted = self.urgent = False

    def report(self, number: int, *, idle: bool) -> hal.Report:
        progress = tuple(work.progress() for work in self.touched.values())
        counts = (self.steps, Tokens(self.prefilled), Tokens(self.decoded), self.busy_ms)
        return hal.Report(number, progress, *counts, idle, self.aborted)
