"""The task control block: one generation under kernel control, its states and the moves between them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from llmasos_edge.errors import LLMasOSError, Panic
from llmasos_edge.kernel.memory.kv_state import KvState
from llmasos_edge.kernel.units import ClientId, Milliseconds, ModelId, Priority, SequenceId, SessionId, TaskId, Tokens


class State(Enum):
    NEW = "NEW"  # its prompt is being rendered and tokenised
    READY = "READY"  # on the ready queue of its model
    RUNNING = "RUNNING"  # holds a sequence of its model's context
    BLOCKED = "BLOCKED"  # waits for its model, or for the turn before it in its session
    SUSPENDED = "SUSPENDED"  # by its owner, until resumed
    TERMINATED = "TERMINATED"  # has an outcome


_LIVE: Final = frozenset(State) - {State.TERMINATED}
TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.NEW: _LIVE - {State.RUNNING, State.NEW} | {State.TERMINATED},
    State.READY: _LIVE - {State.READY} | {State.TERMINATED},
    State.RUNNING: _LIVE - {State.NEW, State.RUNNING} | {State.TERMINATED},
    State.BLOCKED: frozenset({State.NEW, State.READY, State.SUSPENDED, State.TERMINATED}),
    State.SUSPENDED: frozenset({State.NEW, State.READY, State.BLOCKED, State.TERMINATED}),
    State.TERMINATED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended: `error`, or a text with its finish reason (and the JSON value of a formatted answer)."""

    finish_reason: str = ""
    data: object = None
    error: LLMasOSError | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """What a caller asks for. `program` is opaque to the kernel: the engine prepares it."""

    client: ClientId
    model: ModelId
    program: object
    priority: Priority = Priority.NORMAL
    max_tokens: Tokens = Tokens(256)
    deadline_ms: Milliseconds | None = None  # from now
    session: SessionId | None = None
    turn: bool = True  # of its session, which goes on from what it computed; else it only waits for those before it
    app: str | None = None
    task: TaskId | None = None  # its id, where the caller numbers its tasks
    attempt: int = 1  # more, for a task that is given again after a restart


@dataclass(slots=True, eq=False)
class Task:
    """The task control block (TCB). Only the task table makes one; only the dispatcher and system calls change it."""

    id: TaskId
    submission: Submission
    order: int
    submitted_ms: Milliseconds
    deadline_at: Milliseconds | None
    priority: Priority
    state: State = State.NEW
    reason: str = ""  # why it is BLOCKED
    prepared: bool = False  # its tokens are in the worker
    preparing: bool = False
    sequence: SequenceId | None = None
    kv: KvState | None = None  # what of it is saved, from its first preparation on
    arriving: bool = False  # it has a sequence, and its state is on the way from the swap file
    prompt_tokens: Tokens = Tokens(0)
    prefix: int = 0  # its first `shared` tokens are this prefix, whose cells others may share
    shared: Tokens = Tokens(0)
    cached_tokens: Tokens = Tokens(0)
    computed: Tokens = Tokens(0)  # tokens whose KV exists: in its sequence, or saved
    generated: Tokens = Tokens(0)
    granted: Tokens = Tokens(0)  # cells that the current quantum may still add
    text: list[str] = field(default_factory=list)
    attempt: int = 1
    suspect: bool = False  # was in a worker that died: runs alone until it ends
    deaths_alone: int = 0
    preemptions: int = 0
    predicted: Tokens = Tokens(0)  # how many it is likely to generate
    left_ms: float = 0.0  # what it would still have cost alone when it last became READY
    ready_since: Milliseconds = Milliseconds(0)  # since when it waits, if it is READY
    waited_ms: Milliseconds = Milliseconds(0)  # for the sequence that it holds, if it is RUNNING
    first_run_ms: Milliseconds | None = None
    first_token_ms: Milliseconds | None = None
    running_since: Milliseconds | None = None
    ran_ms: Milliseconds = Milliseconds(0)
    ended_ms: Milliseconds | None = None
    outcome: Outcome | None = None

    @property
    def model(self) -> ModelId:
        return self.submission.model

    @property
    def live(self) -> bool:
        return self.state is not State.TERMINATED

    @property
    def tokens(self) -> Tokens:
        """Cells that the task needs to go on from here."""
        return Tokens(self.prompt_tokens + self.generated)

    @property
    def likely(self) -> Tokens:
        """How many it will have generated in all: as predicted; as many again as it has, once it outlived that."""
        if self.generated < self.predicted:
            return self.predicted
        return Tokens(min(self.submission.max_tokens, max(1, 2 * self.generated)))

    def move(self, state: State, now: Milliseconds, reason: str = "") -> None:
        """Change state, along TRANSITIONS only; accounts for running time."""
        if state not in TRANSITIONS[self.state]:
            raise Panic(f"Task.move: {self.id} from {self.state.name} to {state.name}")
        if self.running_since is not None:
            self.ran_ms = Milliseconds(self.ran_ms + now - self.running_since)
            self.running_since = None
        if state is State.RUNNING:
            self.running_since, self.waited_ms = now, Milliseconds(now - self.ready_since)
            if self.first_run_ms is None:
                self.first_run_ms = now
        if state is State.READY:
            self.ready_since = now
        self.state, self.reason = state, reason

    def this_run_ms(self, now: Milliseconds) -> Milliseconds:
        """Since it was last given a sequence; 0: it has none."""
        return Milliseconds(now - self.running_since if self.running_since is not None else 0)

    def running_ms(self, now: Milliseconds) -> Milliseconds:
        return Milliseconds(self.ran_ms + self.this_run_ms(now))

    def start_over(self) -> None:
        """Forget all that was computed: the worker that held it is gone."""
        self.prepared = self.preparing = False
        self.sequence, self.arriving = None, False
        self.computed = self.generated = self.granted = Tokens(0)
        if self.text:
            self.text.clear()
            self.attempt += 1
