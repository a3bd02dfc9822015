"""A task inside a worker: its tokens, what of them is computed, its sampler, and its text so far."""

from __future__ import annotations  # array[int] exists for the type checker only

from array import array
from dataclasses import dataclass

from llmasos_edge.engine.answer_text import AnswerText
from llmasos_edge.engine.protocol import Program
from llmasos_edge.engine.sampling import Sampler
from llmasos_edge.kernel.hal import Progress
from llmasos_edge.kernel.memory.extent import Extent
from llmasos_edge.kernel.units import TaskId, Tokens


@dataclass(slots=True, eq=False)
class Work:
    task: TaskId
    program: Program
    tokens: array[int]  # the prompt, then what was generated
    limit: int  # tokens that it may generate
    sampler: Sampler
    answer: AnswerText
    prompt: int
    sequence: int | None = None
    computed: int = 0  # tokens whose KV exists, in the sequence or parked
    cached: int = 0  # of those, found computed already
    parked: tuple[Extent, int] | None = None  # and the bytes used of it
    unsent: str = ""
    finished: bool = False
    prefill_left: int = 0  # of the lease
    decode_left: int = 0

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def runnable(self) -> bool:
        """The lease lets it compute something now."""
        return not self.finished and self.sequence is not None and (self.decode_left > 0 or self.pending > 1)

    def progress(self) -> Progress:
        """Counts, and the text since the last report."""
        text, self.unsent = self.unsent, ""
        return Progress(self.task, Tokens(self.computed), Tokens(self.generated), Tokens(self.cached), text)
