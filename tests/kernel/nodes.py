"""Simulated nodes for the kernel's tests, checked after every event and for leaks at the end."""

from collections.abc import Callable
from typing import TypeVar

from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram, answer_text
from llmasos_edge.engine.simulation import Simulation
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.processor import Phase
from llmasos_edge.kernel.task import State, Submission, Task
from llmasos_edge.kernel.units import Bytes, ClientId, Milliseconds, ModelId, Priority, SequenceId, TaskId, Tokens

T = TypeVar("T")
M = ModelId("m")
MIB = 1 << 20


def limits(
    context: int = 2048, cells: int = 4096, sequences: int = 16, cell_bytes: int = 1024, *, pinned: bool = False
) -> hal.Limits:
    return hal.Limits(Tokens(context), Tokens(cells), sequences, Bytes(cell_bytes), pinned)


def model(context: int = 2048, cells: int = 4096, sequences: int = 16) -> SimulatedModel:
    return SimulatedModel(limits(context, cells, sequences))


def tcb(
    order: int,
    priority: Priority = Priority.NORMAL,
    *,
    prompt: int = 10,
    preemptions: int = 0,
    client: str = "c",
    deadline_at: int | None = None,
    ready_since: int = 0,
    left_ms: float = 0.0,
) -> Task:
    """A READY task control block by itself, for policies."""
    submission = Submission(ClientId(client), M, SimulatedProgram(prompt, 10), priority)
    deadline = None if deadline_at is None else Milliseconds(deadline_at)
    task = Task(TaskId(f"1-{order}"), submission, order, Milliseconds(0), deadline, priority, State.READY)
    task.prompt_tokens, task.preemptions = Tokens(prompt), preemptions
    task.ready_since, task.left_ms = Milliseconds(ready_since), left_ms
    return task


def running(task: Task, sequence: int = 0) -> Task:
    task.move(State.RUNNING, Milliseconds(0))
    task.sequence = SequenceId(sequence)
    return task


class CheckedSimulation(Simulation):
    """Checks every invariant after every event, unless a test has too many of them."""

    checking = True

    def do(self, call: Callable[..., T], *args: object) -> T:
        result = super().do(call, *args)
        if self.checking:
            self.check()
        return result

    def step(self) -> bool:
        happened = super().step()
        if self.checking:
            self.check()
        return happened

    def check(self) -> None:
        self.dispatcher.check_invariants()
        self._check_queues()
        charged = {region.name for region in self.ledger.regions()}
        assert {f"{model} weights" for model in self.machine.present} <= charged, "a worker's memory was given away"
        leases = [each.quantum for each in self.dispatcher.processors() if each.quantum is not None]
        assert sum(lease.threads for lease in leases) <= self.machine.cores
        for task in self.tasks():
            held = task.sequence is not None or is_parked(task)
            assert held or not task.live or not task.computed, f"the state of {task.id} is nowhere"
            assert task.live or task.kv is None

    def _check_queues(self) -> None:
        """Every live task waits in exactly the place that its state names."""
        homes = {home.model: home for home in self.dispatcher.processors()}
        ready = {task.id for home in homes.values() for task in home.ready}
        unprepared = {task.id for home in homes.values() for task in home.newcomers.waiting.values()}
        for task in self.tasks():
            home = homes[task.model]
            places = {
                "ready": task.id in ready,
                "running": task.id in home.running,
                "preparing": task.id in home.newcomers.preparing,
                "unprepared": task.id in unprepared,
            }
            expected = {
                State.READY: {"ready"},
                State.RUNNING: {"running"},
                State.NEW: {"preparing"},
                State.BLOCKED: {"unprepared"} if task.reason == "model" else set(),
                State.SUSPENDED: {"preparing"} if task.preparing else set(),
                State.TERMINATED: set(),
            }[task.state]
            assert {name for name, there in places.items() if there} == expected, (task.id, task.state, places)
            assert task.suspect == (task in home.suspects)

    def tasks(self) -> list[Task]:
        return list(self.dispatcher.kernel.table)

    def settle(self) -> None:
        """Run to the end, drop every model, and look for what is left over."""
        self.run()
        for processor in self.dispatcher.processors():
            assert processor.live == 0
            if processor.phase is not Phase.UNLOADED:
                assert not self.machine.engines[processor.model].tasks
                self.do(self.syscalls.drop, processor.model)
        assert self.dispatcher.kernel.table.live_count == 0
        for state in self.swapper.states():
            assert state.task is None
            assert not state.resident
            assert not state.arriving
            assert state.session is not None
            self.swapper.forget(state)
        self.run()
        assert self.arena.statistics().used == 0
        assert self.swapper.swap is None or self.swapper.swap.statistics().used == 0
        assert not self.device.held
        assert [region.name for region in self.ledger.regions()] == ["arena"]
        ended = [task.id for task in self.transcript.ends]
        assert len(ended) == len(set(ended)), "a task ended twice"

    def text(self, task: Task) -> str:
        """What its last attempt streamed."""
        return "".join(text for of, attempt, text in self.transcript.deltas if (of, attempt) == (task.id, task.attempt))


def is_ok(simulation: CheckedSimulation, task: Task) -> bool:
    """It ended by itself, its text whole, and streamed as it was kept."""
    program = task.submission.program
    assert isinstance(program, SimulatedProgram)
    whole = answer_text(program.answer)
    right = "".join(task.text) == whole == simulation.text(task)
    return task.outcome is not None and task.outcome.finish_reason == "stop" and right


def is_parked(task: Task) -> bool:
    """Some of its state is saved."""
    return task.kv is not None and bool(task.kv.segments or task.kv.saving)


def code(task: Task) -> str:
    """The code of the error that it ended with."""
    assert task.outcome is not None
    assert task.outcome.error is not None, task.outcome
    return task.outcome.error.code
