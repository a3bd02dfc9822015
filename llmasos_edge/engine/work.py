"""A task inside a worker: its tokens, what of them is computed, its sampler, and its text so far."""

from __future__ import annotations  # array[int] exists for the type checker only

from array import array
from dataclasses import dataclass, field

from llmasos_edge.engine.answer_text import AnswerText
from llmasos_edge.engine.protocol import Program
from llmasos_edge.engine.sampling import Sampler
from llmasos_edge.kernel.hal import Piece, Progress
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
    prefix: int = 0  # the number of the prefix that it shares with others
    shared: int = 0  # tokens of that
    sequence: int | None = None
    target: int | None = (
        None  # where its next tokens are computed: its sequence, or that of its prefix until it is there
    )
    pieces: tuple[Piece, ...] = ()  # to be restored when all before them is there
    computed: int = 0  # tokens whose KV exists
    reached: int = 0  # tokens whose KV has existed when its sequence was taken away
    cached: int = 0  # tokens that it found computed already
    unsent: list[str] = field(default_factory=list)  # the text of each token
    finished: bool = False
    prefill_left: int = 0  # of the lease
    decode_left: int = 0
    alone: bool = False  # its prompt comes before the others' next step

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def sharing(self) -> bool:
        """Its prefix is being computed, by itself or by another task."""
        return self.target != self.sequence

    @property
    def ahead(self) -> int:
        """Tokens to be computed until something else is to be done."""
        if self.sharing:
            return self.shared - self.computed
        return self.pieces[0].start - self.computed if self.pieces else self.pending

    @property
    def runnable(self) -> bool:
        """The lease lets it compute something now."""
        return not self.finished and self.sequence is not None and (self.decode_left > 0 or self.pending > 1)

    @property
    def hurried(self) -> bool:
        """Until its prompt is computed nobody else goes on."""
        return self.alone and self.runnable and self.pending > 1 and self.prefill_left > 0

    def found(self, end: int) -> None:
        """Its tokens up to `end` turned out to be computed already; its own work of earlier does not count as such."""
        self.cached += max(0, end - max(self.computed, self.reached))
        self.computed = max(self.computed, end)

    def say(self, text: str) -> None:
        """A token may have none: the first part of a character, or what could be a stop string."""
        if text:
            self.unsent.append(text)

    def progress(self) -> Progress:
        """Counts, and the text since the last report."""
        text = tuple(self.unsent)
        self.unsent.clear()
        return Progress(self.task, Tokens(self.computed), Tokens(self.generated), Tokens(self.cached), text)
