"""A state machine over the whole kernel: any calls, faults and pauses, and every task ends exactly once."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import Fault, SimulatedProgram
from llmasos_edge.engine.simulation import TARGETS
from llmasos_edge.errors import BadRequest, NoMemory
from llmasos_edge.kernel.memory.pressure import Level, Space
from llmasos_edge.kernel.memory.replacement import REPLACEMENTS
from llmasos_edge.kernel.scheduling.policies import POLICIES
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId, Priority, Tokens
from tests.kernel.memory.test_pressure import CALM, SEVERE, SHORT, UNEASY
from tests.kernel.nodes import MIB, CheckedSimulation, is_ok, limits

NAMES = [ModelId(name) for name in ("a", "b", "c")]
MODEL = SimulatedModel(limits(context=300, cells=500, sequences=3), weights=Bytes(20 * MIB), load_ms=50)
ELASTIC = replace(MODEL, limits=replace(MODEL.limits, cells=Tokens(512), most=Tokens(2048)))
MODELS = {NAMES[0]: MODEL, NAMES[1]: MODEL, NAMES[2]: ELASTIC}
programs = st.builds(
    SimulatedProgram,
    prompt=st.integers(1, 310),
    answer=st.integers(0, 80),
    preparing=st.sampled_from([None] * 12 + list(Fault)),
    running=st.sampled_from([None] * 12 + list(Fault)),
    fault_at=st.integers(0, 20),
    agrees=st.sampled_from([None, None, 0, 17, 150]),
)


class KernelMachine(RuleBasedStateMachine):
    """Three models of which two fit at a time, three sequences each, an arena and a swap file that fill up."""

    def __init__(self) -> None:
        super().__init__()
        self.simulation = CheckedSimulation(MODELS)
        self.tasks: list[Task] = []

    @initialize(
        policy=st.sampled_from(sorted(POLICIES)),
        arena=st.sampled_from([1, 60, 1024]),
        cores=st.integers(1, 4),
        latency=st.sampled_from([0.0, 3.0, 60.0]),
        swap=st.sampled_from([0, 60, 4096]),
        replacement=st.sampled_from(sorted(REPLACEMENTS)),
        model_wait=st.sampled_from([1, 200, 5000]),
    )
    def boot(
        self, *, policy: str, arena: int, cores: int, latency: float, swap: int, replacement: str, model_wait: int
    ) -> None:
        self.simulation = CheckedSimulation(
            MODELS,
            policy=policy,
            cores=cores,
            budget=Bytes(50 * MIB),
            arena=Bytes(arena * 4096),
            latency_ms=latency,
            swap=Bytes(swap * 4096),
            replacement=replacement,
            targets=replace(TARGETS, model_wait_ms=Milliseconds(model_wait)),
        )

    @rule(
        program=programs,
        model=st.sampled_from(NAMES),
        priority=st.sampled_from(Priority),
        session=st.sampled_from([None, None, "s", "t"]),
        client=st.sampled_from("xyz"),
        deadline_ms=st.one_of(st.none(), st.none(), st.integers(0, 5000)),
        count=st.integers(1, 4),
    )
    def submit(self, program: SimulatedProgram, count: int, **fields: Any) -> None:
        for _ in range(count):
            try:
                self.tasks.append(self.simulation.submit(program, max_tokens=60, **fields))
            except NoMemory:
                assert self.pressure is Level.REFUSE

    @property
    def pressure(self) -> Level:
        return self.simulation.dispatcher.kernel.loader.pressure.level

    @rule(seen=st.sampled_from([CALM, UNEASY, SHORT, SEVERE]), seconds=st.integers(1, 8))
    def feel(self, seen: Space, seconds: int) -> None:
        for _ in range(seconds):
            self.simulation.do(self.simulation.dispatcher.relief.felt, [seen])
            since, loading = self.simulation.now, self.pressure < Level.DROP
            self.simulation.run(1000)
            events = self.simulation.trace.events()
            assert loading or not [it for it in events if it.kind == "model.loading" and it.at_ms > since]

    @rule(ms=st.sampled_from([0, 1, 9, 11, 40, 150, 400, 3000]))
    def wait(self, ms: int) -> None:
        self.simulation.run(ms)

    @precondition(lambda self: any(task.live for task in self.tasks))
    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from([task for task in self.tasks if task.live]))
        name = data.draw(st.sampled_from(["cancel", "suspend", "resume", "renice"]))
        more = [data.draw(st.sampled_from(Priority))] if name == "renice" else []
        self.simulation.do(getattr(self.simulation.syscalls, name), task.id, *more)

    @rule(model=st.sampled_from(NAMES))
    def kill_worker(self, model: ModelId) -> None:
        if model in self.simulation.machine.engines:
            self.simulation.machine.engines[model].die("killed by SIGKILL")

    @rule(model=st.sampled_from(NAMES), fault=st.sampled_from([None, *Fault]))
    def break_file(self, model: ModelId, fault: Fault | None) -> None:
        self.simulation.machine.loading_faults.pop(model, None)
        if fault is not None:
            self.simulation.machine.loading_faults[model] = fault

    @rule(model=st.sampled_from(NAMES))
    def load_model(self, model: ModelId) -> None:
        with suppress(NoMemory):
            self.simulation.do(self.simulation.syscalls.load, model)

    @rule(model=st.sampled_from(NAMES))
    def drop_model(self, model: ModelId) -> None:
        try:
            self.simulation.do(self.simulation.syscalls.drop, model)
        except BadRequest:
            assert self.simulation.dispatcher.processor(model).busy

    @rule(rate=st.sampled_from([10.0, 500.0, 50_000.0]), failing=st.booleans())
    def change_disk(self, rate: float, failing: bool) -> None:
        self.simulation.device.rate, self.simulation.device.failing = rate, failing

    @precondition(lambda self: any(True for _ in self.simulation.swapper.states()))
    @rule(data=st.data())
    def move_state(self, data: st.DataObject) -> None:
        idle = [state for state in self.simulation.swapper.states() if state.task is None]
        if idle:
            act = data.draw(st.sampled_from(["drop", "forget", "swap_out"]))
            getattr(self.simulation.swapper, act)(data.draw(st.sampled_from(idle)))
            self.simulation.check()

    @rule(limit=st.sampled_from([4096, 1 << 20]))
    def compact(self, limit: int) -> None:
        before = self.simulation.arena.statistics()
        moved = self.simulation.swapper.segments.compact(Bytes(limit))
        self.simulation.check()
        assert moved <= limit
        assert not moved or self.simulation.arena.statistics().largest_hole > before.largest_hole

    @rule()
    def compact_swap(self) -> None:
        self.simulation.swapper.segments.compact_swap()
        self.simulation.check()

    @rule(model=st.sampled_from(NAMES), fingerprint=st.sampled_from("12"))
    def install_another(self, model: ModelId, fingerprint: str) -> None:
        self.simulation.machine.fingerprints[model] = fingerprint

    @rule(model=st.sampled_from(NAMES))
    def corrupt(self, model: ModelId) -> None:
        if model in self.simulation.machine.engines:
            segments = [each.id for state in self.simulation.swapper.states() for each in state.segments]
            self.simulation.machine.engines[model].corrupt.update(segments[::3])

    def teardown(self) -> None:
        """It is calm at last, who was suspended may go on, and then everybody comes to an end."""
        while self.pressure is not Level.NONE:
            self.feel(CALM, 1)
        while any(task.live for task in self.tasks):
            for task in self.tasks:
                if task.state is State.SUSPENDED:
                    self.simulation.do(self.simulation.syscalls.resume, task.id)
            self.simulation.run()
        self.simulation.settle()
        assert sorted(task.id for task in self.tasks) == sorted(task.id for task in self.simulation.transcript.ends)
        for task in self.tasks:
            assert task.outcome is not None
            if task.outcome.finish_reason == "stop":
                assert is_ok(self.simulation, task)


TestKernel = KernelMachine.TestCase
TestKernel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
