"""A door with the real kernel and the real journal behind it, and a scripted engine: nothing happens by itself."""

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from llmasos_edge.api.door import Arrival, Clocks, Door
from llmasos_edge.api.requests import Accepting
from llmasos_edge.api.sessions import Sessions
from llmasos_edge.api.ticket import Reply
from llmasos_edge.engine.protocol import Program
from llmasos_edge.engine.simulation import SimulatedMemory
from llmasos_edge.ipc.messages import Accepted, Generation, decode_request
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.dispatcher import Dispatcher, Kernel
from llmasos_edge.kernel.loader import Loader
from llmasos_edge.kernel.memory.arena import Arena
from llmasos_edge.kernel.memory.budget import Ledger, Region
from llmasos_edge.kernel.scheduling.batch import Targets
from llmasos_edge.kernel.scheduling.policies import POLICIES
from llmasos_edge.kernel.segments import Stores
from llmasos_edge.kernel.swapper import Swapper
from llmasos_edge.kernel.syscalls import Syscalls
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.task_table import TaskTable
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Bytes, ClientId, Milliseconds, ModelId, Priority, SequenceId, TaskId, Tokens
from llmasos_edge.services.journal import Entry, Journal
from llmasos_edge.services.security import Caller

MODEL = ModelId("tiny")
PHONE = Caller(ClientId("phone"), Priority.INTERACTIVE)
PATIENCE_S = 10.0


class ScriptedEngine:
    """Prepares at once; answers a granted task with `answer` when `go` says so. Keeps every program that it got."""

    cores = 1

    def __init__(self, tell: Callable[[hal.Event], None], program_of: Callable[[Task], Program]) -> None:
        self._tell, self._program_of = tell, program_of
        self.programs: list[Program] = []
        self.running: list[TaskId] = []
        self._number = 0

    # ---- Machine

    def limits(self, model: ModelId) -> hal.Limits | None:
        return hal.Limits(Tokens(512), Tokens(2048), 4, Bytes(10)) if model == MODEL else None

    def footprint(self, model: ModelId, cells: Tokens | None = None) -> tuple[Region, ...]:
        return (Region(f"{model}.weights", "weights", Bytes(1000)),)

    def fingerprint(self, model: ModelId) -> str:
        return ""

    def alternatives(self, model: ModelId, room: Bytes) -> tuple[hal.Alternative, ...]:
        return ()

    def load_timeout(self, model: ModelId) -> Milliseconds:
        return Milliseconds(60_000)

    def load(self, model: ModelId) -> "ScriptedEngine":
        self._tell(hal.Loaded(model, {}))
        return self

    # ---- Engine

    def prepare(self, task: Task) -> None:
        self.programs.append(self._program_of(task))
        self._tell(hal.Prepared(task.id, Tokens(5)))

    def switch_in(self, task: TaskId, sequence: SequenceId, pieces: tuple[hal.Piece, ...]) -> None:
        self.running.append(task)

    def switch_out(self, task: TaskId, save: hal.Save | None) -> None:
        self.running.remove(task)

    def resize(self, cells: Tokens) -> None:
        """Nobody asks for it."""

    def grant(self, quantum: hal.Quantum) -> None:
        self._number = quantum.number

    def interrupt(self) -> None:
        """Nothing is under way."""

    def forget(self, task: TaskId) -> None:
        if task in self.running:
            self.running.remove(task)

    def stop(self) -> None:
        self.running.clear()

    def kill(self) -> None:
        self._tell(hal.Died(MODEL, "killed"))

    # ---- the script

    def say(self, *text: str) -> None:
        """Every running task says so, a token after the other."""
        said = tuple(hal.Progress(task, Tokens(5), Tokens(1), Tokens(0), text) for task in self.running)
        self._tell(hal.Report(self._number, said, 1, Tokens(0), Tokens(1), 1.0, idle=False, aborted=False))

    def finish(self) -> None:
        """Every running task has ended."""
        for task in tuple(self.running):
            self._tell(hal.Finished(task, "stop"))


class Listener:
    """A waiter that keeps what it is told. Two with the same name are the same place to reply to."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.told: list[Accepted] = []
        self.deltas: list[tuple[str, int]] = []
        self.replies: list[Reply] = []
        self.bytes: list[bytes] = []
        self.acks = 0

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Listener) and bool(self.name) and self.name == other.name)

    __hash__ = None  # type: ignore[assignment]

    def accepted(self, accepted: Accepted) -> None:
        self.told.append(accepted)

    def delta(self, text: Sequence[str], attempt: int) -> None:
        self.deltas.append(("".join(text), attempt))

    def reply(self, reply: Reply, encoded: bytes) -> None:
        self.replies.append(reply)
        self.bytes.append(encoded)

    def ack(self) -> None:
        self.acks += 1


class Desk:
    """A node without its outside. `settle` lets the kernel do what was posted; the disk works only after `disk`."""

    def __init__(self, folder: Path) -> None:
        self.now = Milliseconds(1000)
        self.wall_ms = 1_800_000_000_000
        self.journal = Journal(
            folder / "journal.db",
            monotonic_ms=lambda: self.now,
            wall_ms=lambda: self.wall_ms,
            report=lambda kind, details: None,
        )
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.trace = Trace()
        accepting = Accepting(
            MODEL, lambda app, given: {"messages": [{"role": "user", "content": f"{app}: {given}"}]}, lambda _app: None
        )
        clocks = Clocks(lambda: self.now, lambda: self.wall_ms)
        self.door = Door("desk", self.journal.boot(), self.journal, accepting, clocks, self._inbox.put)
        self.engine = ScriptedEngine(self._tell, self.door.program)
        loader = Loader(self.engine, Ledger(Bytes(1 << 20)), self.trace)
        targets = Targets(Milliseconds(200), Milliseconds(150))
        table, stores = TaskTable(self.journal.boot()), Stores(Arena(Bytes(1 << 16), "first-fit"), SimulatedMemory())
        self.kernel = Kernel(
            table, POLICIES["priority"](), Swapper(stores, self.trace), loader, self.trace, targets, self.door
        )
        self.dispatcher = Dispatcher(self.kernel)
        self.syscalls = Syscalls(self.dispatcher)
        self.door.open(self.syscalls, self.trace)
        self.sessions = Sessions(self.journal, self.door.conversations, self.kernel.swapper, self.dispatcher.turns)

    def disk(self) -> None:
        """From now on the journal writes."""
        self.journal.start()

    def post(self, call: Callable[[], object]) -> None:
        self._inbox.put(call)

    def settle(self) -> None:
        while not self._inbox.empty():
            self._inbox.get()()
            self.dispatcher.dispatch(self.now)

    def until(self, condition: Callable[[], object]) -> None:
        """Let disk and kernel work until it holds."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end
            self.settle()
            time.sleep(0.001)
        self.settle()

    def arrive(self, listener: Listener, body: bytes, *, op: str = "generate", **fields: object) -> TaskId | None:
        """A request of the phone's."""
        request = decode_request(op, body)
        assert isinstance(request, Generation)
        given = {"durable": True, "ack": listener.ack, "caller": PHONE, "id": request.id or "r1"} | fields
        task = self.door.arrive(Arrival(op=op, body=body, request=request, waiter=listener, **given))  # type: ignore[arg-type]
        self.dispatcher.dispatch(self.now)
        self.settle()
        return task

    def resume(self, listener: Listener, entry: Entry) -> TaskId | None:
        """A request of the journal, after a restart."""
        return self.arrive(listener, entry.body, op=entry.op, id=entry.id, entry=entry, ack=None)

    def answer(self, text: str = "hello") -> None:
        self.engine.say(text)
        self.settle()
        self.engine.finish()
        self.settle()

    def _tell(self, event: hal.Event) -> None:
        if isinstance(event, hal.Report):
            report = event
            self._inbox.put(lambda: self.dispatcher.report(MODEL, report, self.now))
        else:
            told = event
            self._inbox.put(lambda: self.dispatcher.handle(told, self.now))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.journal.stop()
