"""A processor: one model and its worker as the dispatcher sees them: sequences, cells, lease, and who waits."""

from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.hal import Engine, Limits, Quantum
from llmasos_edge.kernel.memory.budget import Region
from llmasos_edge.kernel.memory.replacement import Uses
from llmasos_edge.kernel.newcomers import Newcomers
from llmasos_edge.kernel.scheduling.batch import BATCH, SMOOTHING, Rates
from llmasos_edge.kernel.scheduling.forecast import Cost, Work, arrival
from llmasos_edge.kernel.scheduling.ready_queue import ReadyQueue
from llmasos_edge.kernel.scheduling.shares import Debts, Shares
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Bytes, ClientId, Milliseconds, ModelId, Priority, SequenceId, TaskId, Tokens

HEADROOM: Final = 64  # cells a task must find beyond its own tokens to be seated
GROWTH: Final = 16  # cells each running task must be able to grow by, or one of them is switched out
PATIENCE_MS: Final = 10_000  # beyond three times the expected time: a worker without a report is hung
PREPARE_MS: Final = 30_000  # the same for a prompt that is being prepared


class Phase(Enum):
    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"


class Processor:
    """Holds what is true of one model now; the dispatcher changes it."""

    def __init__(self, model: ModelId, limits: Limits) -> None:
        self.model: Final = model
        self.limits = limits
        self.phase = Phase.UNLOADED
        self.engine: Engine | None = None
        self.regions: tuple[Region, ...] = ()
        self.awaits: Bytes | None = None  # loading begins when so many have been given back; they are charged then
        self.grown = Bytes(0)  # charged since it was loaded, as measured beyond the charge before
        self.outgrown = False  # its worker was killed for what it took: no task is to blame
        self.details: dict[str, object] = {}
        self.load_failed = False  # the last attempt: the next one is the last
        self.wanted = False  # to be loaded again although nobody waits for it: it is pinned
        self.stale = False  # loaded with settings that are no longer the node's: to be dropped when it is idle
        self.running: dict[TaskId, Task] = {}
        self.newcomers = Newcomers()
        self.resizing: Tokens | None = None  # a context with so many cells is being made
        self.saving = 0  # segments that the worker has been told to save, and has not told of yet
        self.suspects: deque[Task] = deque()  # were in a worker that died; each runs alone
        self.live = 0  # tasks of this model that have no outcome yet, wherever they wait
        self.rates = Rates()
        self.shares = Shares()
        self.ready = ReadyQueue(self.shares.served)
        self.debts = Debts()
        self.typical: Work | None = None  # what a task has taken, on average; None: not known yet
        self.quantum_ms = Milliseconds(0)  # as the last dispatch had it
        self.quantum: Quantum | None = None  # the lease that the worker holds
        self.numbers = 0
        self.lease_until = Milliseconds(0)
        self.changed = False  # who runs is no longer what the lease says
        self.urgent = False  # what changed can't wait for the end of a long step
        self.interrupted = False  # a step was aborted, and none has completed since
        self.expect_by: Milliseconds | None = None  # no report by then: the worker is hung
        self.prepare_by: Milliseconds | None = None
        self.used_at = Milliseconds(0)
        self.used_by = Priority.BATCH  # the class of the task that came last
        self.uses = Uses()
        self.returns = 0.5  # share of the times when it was idle for less than loading takes
        self.referenced = False
        self.ring = 0
        self.load_began = self.loaded_at = Milliseconds(0)
        self.load_ms = 0.0  # what the last load took
        self.progress: float | None = None  # how far it is loaded, while it is being loaded
        self.waiting_since: Milliseconds | None = None  # wanted, and serves nobody
        self.draining = False  # another model's turn has come: nobody more is admitted
        self.leaving = False  # to be dropped as soon as what its last tasks computed is saved
        self.has_served = False  # somebody, since it was loaded
        self.due = False  # it must serve before it may be drained, whoever waits
        self.configure(limits)

    def configure(self, limits: Limits) -> None:
        """Take these limits; not while it is loaded."""
        if self.phase is not Phase.UNLOADED:
            raise Panic(f"Processor.configure: {self.model} is {self.phase.value}")
        self.limits, self.stale = limits, False
        self._sequences = [SequenceId(n) for n in reversed(range(limits.sequences))]

    @property
    def worker(self) -> Engine:
        if self.engine is None:
            raise Panic(f"Processor.worker: {self.model} is {self.phase.value}")
        return self.engine

    @property
    def state(self) -> str:
        """As people see it."""
        return "draining" if self.draining or self.leaving else self.phase.value

    @property
    def empty(self) -> bool:
        """No task is in it: only such a model is dropped."""
        return not (self.running or self.newcomers.preparing or len(self.ready) or self.saving)

    @property
    def busy(self) -> bool:
        """It has work, or will as soon as it is loaded."""
        return bool(self.running or self.newcomers or len(self.ready))

    @property
    def bytes(self) -> Bytes:
        """What it is charged."""
        return Bytes(sum(region.bytes for region in self.regions))

    @property
    def urgency(self) -> Priority:
        """The highest class of its tasks; of the one that came last, if it has none."""
        here = {task.priority for task in self.running.values()} | self.newcomers.classes()
        return max(here | {each for each, count in self.ready.waiting().items() if count}, default=self.used_by)

    def use(self, priority: Priority, now: Milliseconds) -> None:
        """A task comes for it."""
        if not self.busy and self.load_ms:
            self.returns += SMOOTHING * ((now - self.used_at <= self.load_ms) - self.returns)
        self.used_at, self.used_by, self.referenced = now, priority, True
        self.uses.add(now)

    def note_turn(self, now: Milliseconds) -> None:
        """Since when it is waited for: after each dispatch."""
        if self.running or not (self.busy or self.wanted):
            self.waiting_since, self.due, self.has_served = None, False, True
        elif self.waiting_since is None:
            self.waiting_since = now

    @property
    def seated(self) -> list[Task]:
        """Those who can compute: the others' state is still on its way."""
        return [task for task in self.running.values() if not task.arriving]

    @property
    def cells_free(self) -> int:
        return self.limits.cells - _cells(self.running.values())

    @property
    def quarantined(self) -> Task | None:
        """Whose turn it is to be here alone: the first suspect that its owner has not suspended."""
        return next((task for task in self.suspects if task.state is not State.SUSPENDED), None)

    def can_seat(self, task: Task, without: Sequence[Task] = ()) -> bool:
        """A sequence and cells are free for it, and stay so while those who run grow a little."""
        if self.resizing is not None:
            return False
        others = [other for other in self.running.values() if other not in without]
        if self.quarantined not in (None, task) or (task.kv is not None and task.kv.saving is not None):
            return False
        if not others:
            return True
        cells = self.limits.cells - _cells([*others, task])
        room = len(others) < self.limits.sequences and HEADROOM + GROWTH * len(others) <= cells
        return room and self.quarantined is None

    def cells_for(self, waiting: Iterable[Task]) -> int:
        """What those who run and these would take, with room to grow."""
        tasks = [*self.running.values(), *waiting]
        return _cells(tasks) + (HEADROOM + GROWTH) * len(tasks)

    def served(self, client: ClientId) -> int:
        return self.shares.served(client)

    def owed(self, priority: Priority) -> float:
        return self.debts.owed(priority)

    def cost(self, task: Task, generates: Tokens) -> Cost:
        """What it still takes at the rates measured so far, if it generates so much in all (once more, at least)."""
        prompt, to_come = max(0, task.tokens - task.computed), max(1, generates - task.generated)
        return Cost(self.rates.expected_ms(0, prompt), self.rates.expected_ms(to_come, 0))

    def takes(self, task: Task, ahead: int | None) -> float:
        """Milliseconds until it should have its answer, as things stand. `ahead` come before it; None: it runs."""
        inside = [self._left(each) for each in self.running.values() if each is not task]
        waiting = max(0, self.live - len(self.running) - (ahead is not None))
        own, sequences = self._left(task), self.limits.sequences
        work = arrival(own, ahead, inside, waiting, self.typical or own, sequences)
        step = self.rates.step(max(1, min(self.live, sequences)))
        loading = 0.0 if self.phase is Phase.LOADED else self.load_ms * (1 - (self.progress or 0.0))
        return loading + work.prompt * self.rates.prefill_ms + work.answer * step

    def a_place_ms(self) -> float | None:
        """How often a task ends while all sequences are taken; None: nothing is measured yet."""
        if self.typical is None:
            return None
        sequences = self.limits.sequences
        return (
            self.typical.prompt * self.rates.prefill_ms + self.typical.answer * self.rates.step(sequences) / sequences
        )

    def _left(self, task: Task) -> Work:
        """What it has still to compute; a prompt that is not prepared is taken for a typical one."""
        prompt = task.tokens - task.computed if task.prepared else self.typical.prompt if self.typical else 0
        return Work(max(0, prompt), max(1, task.likely - task.generated))

    def enqueue(self, task: Task) -> None:
        """Put a READY task on the queue. A client that had none here before is not owed for that."""
        client, running = task.submission.client, {each.submission.client for each in self.running.values()}
        if client not in running and not self.ready.has(client):
            counters = [self.ready.least_served(), *map(self.shares.served, running)]
            self.shares.enter(min((counter for counter in counters if counter is not None), default=None))
        task.left_ms = self.cost(task, task.likely).total_ms
        self.ready.put(task)

    def charge(self, client: ClientId, prompt: int, generated: int) -> None:
        """The client was served so many tokens."""
        self.shares.charge(client, prompt, generated)
        self.ready.recount(client)

    def renice(self, task: Task, priority: Priority) -> None:
        waits = task.state is State.READY
        if waits:
            self.ready.remove(task)
        self.newcomers.renice(task, priority)
        task.priority = priority
        if waits:
            self.enqueue(task)

    def learn(self, task: Task) -> None:
        """It has ended by itself."""
        took = Work(task.prompt_tokens - task.cached_tokens, task.generated)
        self.typical = took if self.typical is None else self.typical.blend(took, SMOOTHING)

    def account(self, busy_ms: float) -> None:
        """So long was computed: who looked on is owed some of it."""
        self.debts.account(busy_ms, self.ready.waiting(), {task.priority for task in self.running.values()})

    def overcommitted(self) -> bool:
        """Those who run can't all grow: one must be switched out."""
        return len(self.running) > 1 and self.cells_free < GROWTH * len(self.running)

    def take_sequence(self, task: Task) -> SequenceId:
        task.sequence = self._sequences.pop()
        self.running[task.id] = task
        self.changed = True
        return task.sequence

    def give_sequence(self, task: Task) -> None:
        if task.sequence is None:
            raise Panic(f"Processor.give_sequence: {task.id} has none")
        self._sequences.append(task.sequence)
        task.sequence = None
        del self.running[task.id]
        self.changed = True

    def stop_preparing(self, task: Task, now: Milliseconds) -> bool:
        """False: it was not being prepared."""
        if not self.newcomers.stop_preparing(task):
            return False
        self.prepare_by = Milliseconds(now + PREPARE_MS) if self.newcomers.preparing else None
        return True

    def lease_ends_soon(self, now: Milliseconds) -> bool:
        return self.quantum is None or self.lease_until - now <= self.quantum.time_ms // 2

    def expect(self, now: Milliseconds) -> None:
        """Set the moment by which the worker must have reported: it does so after every long step, and when idle."""
        self.expect_by = Milliseconds(int(now + PATIENCE_MS + 3 * self.rates.expected_ms(2, BATCH)))

    def check_invariants(self) -> None:
        self.ready.check_invariants()
        self.newcomers.check_invariants()
        held = [task.sequence for task in self.running.values()]
        if len(set(held)) != len(held) or len(held) + len(self._sequences) != self.limits.sequences:
            raise Panic(f"Processor.check_invariants: sequences of {self.model} held {held}")
        for task in self.running.values():
            if task.state is not State.RUNNING or task.model != self.model:
                raise Panic(f"Processor.check_invariants: {task.id} is {task.state.name} in {self.model}")


def _cells(tasks: Iterable[Task]) -> int:
    """What their tokens take in the pool: a prefix that several share is there once."""
    cells, prefixes = 0, {}
    for task in tasks:
        cells += task.prompt_tokens + task.generated - task.shared
        if task.shared:
            prefixes[task.prefix] = task.shared
    return cells + sum(prefixes.values())
