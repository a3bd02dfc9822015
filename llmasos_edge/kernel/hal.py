"""What the kernel needs from the world, as protocols, and what the world reports back, as events.

Commands to an Engine return at once and are carried out in the order given. Events come back through the
dispatcher's `handle`, on the kernel's own thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmasos_edge.kernel.memory.budget import Region
from llmasos_edge.kernel.memory.extent import Extent
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import (
    Bytes,
    Milliseconds,
    ModelId,
    SegmentId,
    SequenceId,
    TaskId,
    Tokens,
)


@dataclass(frozen=True, slots=True)
class Slot:
    """One task's part of a quantum: at most `prefill` prompt tokens and `decode` generated tokens. `alone`: its prompt
    is computed in one step before all others go on.
    """

    task: TaskId
    prefill: Tokens
    decode: Tokens
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Quantum:
    """A lease: run these slots until `time_ms` have passed or their allowances are used up.

    It replaces the lease before it at the next step boundary. `chunk` bounds the prompt tokens of one step.
    """

    number: int
    slots: tuple[Slot, ...]
    chunk: Tokens
    time_ms: Milliseconds
    threads: int


@dataclass(frozen=True, slots=True)
class Limits:
    """A model as the kernel sees it: `context` bounds one task, `cells` are shared by its sequences.

    The kernel may give it more cells, up to `most`, and fewer, down to `context`; 0: it has what it has.
    """

    context: Tokens
    cells: Tokens
    sequences: int
    cell_bytes: Bytes  # of KV state, a token
    pinned: bool = False
    most: Tokens = Tokens(0)


@dataclass(frozen=True, slots=True)
class Alternative:
    """Settings of a model with which it would fit, and what it would need then."""

    change: dict[str, object]
    needed: Bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """A saved segment as a worker reads it: the state of tokens [start, end) of a task, in `extent` of the arena.

    `size` bytes of the extent are used, and `checksum` is theirs. What was saved may reach further than `end`.
    """

    segment: SegmentId
    extent: Extent
    size: Bytes
    start: Tokens
    end: Tokens
    checksum: int


@dataclass(frozen=True, slots=True)
class Save:
    """Save the state from token `start` on as this segment, into this extent."""

    segment: SegmentId
    start: Tokens
    extent: Extent


class Engine(Protocol):
    """One worker: a model, its context, and the tasks prepared in it."""

    def prepare(self, task: Task) -> None:
        """Render and tokenise -> Prepared or Refused."""

    def switch_in(self, task: TaskId, sequence: SequenceId, pieces: tuple[Piece, ...]) -> None:
        """Give the task a sequence; of its tokens so many are restored from the pieces as agree with them.

        Tokens before the first piece are shared with another sequence, or computed. With pieces: -> Restored, once
        their extents are no longer needed.
        """

    def switch_out(self, task: TaskId, save: Save | None) -> None:
        """Take the sequence away; its state is saved (-> Saved), or lost. Its tokens stay."""

    def resize(self, cells: Tokens) -> None:
        """Make the context anew with so many cells; no task has a sequence -> Resized."""

    def grant(self, quantum: Quantum) -> None:
        """Replace the lease -> Report."""

    def interrupt(self) -> None:
        """Abort the step that is being computed: only what it had not finished is lost."""

    def forget(self, task: TaskId) -> None:
        """The task has ended: free its sequence and tokens."""

    def stop(self) -> None:
        """End the worker and give back every byte -> Died, when that has happened; nothing else is told any more."""

    def kill(self) -> None:
        """The same for a worker that no longer answers -> Died."""


class Machine(Protocol):
    """The hardware: it starts workers and knows what models cost."""

    cores: int

    def limits(self, model: ModelId) -> Limits | None:
        """None: there is no such model."""

    def footprint(self, model: ModelId, cells: Tokens | None = None) -> tuple[Region, ...]:
        """What a loaded model takes, region by region; with another number of cells than its limits have."""

    def fingerprint(self, model: ModelId) -> str:
        """What saved KV state of the model is bound to: under another one it means nothing."""

    def alternatives(self, model: ModelId, room: Bytes) -> tuple[Alternative, ...]:
        """What would fit into so much room in place of the model as it is."""

    def load_timeout(self, model: ModelId) -> Milliseconds: ...

    def load(self, model: ModelId) -> Engine:
        """Start a worker -> Loading as it goes on, then Loaded or Died."""


class Userland(Protocol):
    """Those who wait for tasks. Calls come on the kernel's thread and must not block."""

    def delta(self, task: Task, text: Sequence[str]) -> None: ...

    def ended(self, task: Task) -> None: ...

    def event(self, kind: str, details: Mapping[str, object]) -> None: ...


@dataclass(frozen=True, slots=True)
class Loading:
    """How far a load has come, from 0 to 1; some 10 times a second at most."""

    model: ModelId
    fraction: float


@dataclass(frozen=True, slots=True)
class Loaded:
    model: ModelId
    details: dict[str, object]


@dataclass(frozen=True, slots=True)
class Died:
    """The worker is gone: `why` is for people. `loading`: it never said Loaded."""

    model: ModelId
    why: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """Its first `shared` tokens are the prefix of this number, whose cells all tasks that have it share."""

    task: TaskId
    prompt_tokens: Tokens
    prefix: int = 0
    shared: Tokens = Tokens(0)


@dataclass(frozen=True, slots=True)
class Refused:
    """The program can't be run as it is; `error` is the wire form of an error."""

    task: TaskId
    error: dict[str, object]


@dataclass(frozen=True, slots=True)
class Saved:
    """The segment holds tokens [start, end) in `size` bytes of its extent; 0: nothing was saved, the state is lost."""

    segment: SegmentId
    start: Tokens
    end: Tokens
    size: Bytes
    checksum: int


@dataclass(frozen=True, slots=True)
class Restored:
    """The pieces agreed with the task's tokens up to `kept`; in those of `corrupt` the checksum was wrong."""

    task: TaskId
    kept: Tokens
    corrupt: tuple[SegmentId, ...] = ()


@dataclass(frozen=True, slots=True)
class Resized:
    model: ModelId
    cells: Tokens
    ms: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a task stands: absolute counts, and the text of each token since the last report."""

    task: TaskId
    computed: Tokens
    generated: Tokens
    cached: Tokens
    text: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker did under lease `number` since its last report. `idle`: the lease is used up."""

    number: int
    progress: tuple[Progress, ...]
    steps: int
    prefilled: Tokens
    decoded: Tokens
    busy_ms: float
    idle: bool
    aborted: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """A task's last word; the text came in reports. `error`: wire form."""

    task: TaskId
    finish_reason: str
    data: object = None
    error: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What the worker takes now, the arena aside."""

    model: ModelId
    bytes: Bytes


Event = Measured | Loading | Loaded | Died | Prepared | Refused | Saved | Restored | Resized | Report | Finished
