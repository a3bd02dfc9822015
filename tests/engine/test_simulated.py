"""Tests of the simulated engine: it obeys as a worker does, and its faults are what tests ask for."""

from dataclasses import dataclass, field, replace

import pytest

from llmasos_edge.engine.simulated import SimulatedEngine, SimulatedModel, Timeline
from llmasos_edge.engine.simulated_work import Fault, SimulatedProgram, answer_text
from llmasos_edge.engine.simulation import SimulatedMachine, Simulation
from llmasos_edge.errors import Panic
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.memory.extent import Extent
from llmasos_edge.kernel.task import Submission, Task
from llmasos_edge.kernel.units import (
    Bytes,
    ClientId,
    Milliseconds,
    ModelId,
    Priority,
    SegmentId,
    SequenceId,
    TaskId,
    Tokens,
)

M = ModelId("m")
MODEL = SimulatedModel(hal.Limits(Tokens(1000), Tokens(1200), 4, Bytes(100)), step_ms=10, prefill_ms=1, load_ms=50)
T = TaskId("t")
FIRST = SequenceId(0)


@dataclass
class Bench:
    """An engine, its clock, and what it said when."""

    timeline: Timeline = field(default_factory=Timeline)
    heard: list[tuple[float, hal.Event]] = field(default_factory=list)
    engine: SimulatedEngine = field(init=False)

    def __post_init__(self) -> None:
        self.engine = SimulatedEngine(M, MODEL, self.timeline, self._hear)

    def _hear(self, model: ModelId, event: hal.Event) -> None:
        self.heard.append((self.timeline.now, event))

    def prepare(self, program: SimulatedProgram, task: TaskId = T, max_tokens: int = 256) -> None:
        submission = Submission(ClientId("c"), M, program, max_tokens=Tokens(max_tokens))
        self.engine.prepare(Task(task, submission, 1, Milliseconds(0), None, Priority.NORMAL))

    def grant(self, *slots: tuple[TaskId, int, int], time_ms: int = 200, chunk: int = 512, number: int = 1) -> None:
        parts = tuple(hal.Slot(task, Tokens(prefill), Tokens(decode)) for task, prefill, decode in slots)
        self.engine.grant(hal.Quantum(number, parts, Tokens(chunk), Milliseconds(time_ms), threads=1))

    def run(self, until: float | None = None) -> list[tuple[float, hal.Event]]:
        """What it said since the last time, up to a moment or until nothing is left to happen."""
        while (moment := self.timeline.next_moment) is not None and (until is None or moment <= until):
            self.timeline.happen()
        self.timeline.now = until or self.timeline.now
        heard, self.heard = self.heard, []
        return heard

    def seated(self, program: SimulatedProgram, *pieces: hal.Piece) -> None:
        """Prepared, in a sequence, and the clock at 1 ms."""
        self.prepare(program)
        self.run()
        self.engine.switch_in(T, FIRST, pieces)


def save(extent: Extent, start: int = 0) -> hal.Save:
    return hal.Save(SegmentId(1), Tokens(start), extent)


def piece(start: int, end: int, segment: int = 1) -> hal.Piece:
    return hal.Piece(SegmentId(segment), Extent(0, 8192), Bytes(0), Tokens(start), Tokens(end), 0)


def reports(heard: list[tuple[float, hal.Event]]) -> list[tuple[float, hal.Report]]:
    return [(at, event) for at, event in heard if isinstance(event, hal.Report)]


def test_prompts_are_prepared_one_after_another() -> None:
    """Each takes its time, and tells its count or its refusal."""
    bench, wire = Bench(), {"code": "bad_request", "message": "no"}
    bench.prepare(SimulatedProgram(7, 1), TaskId("a"))
    bench.prepare(SimulatedProgram(7, 1, refusal=dict(wire)), TaskId("b"))
    assert bench.run() == [(1.0, hal.Prepared(TaskId("a"), Tokens(7))), (2.0, hal.Refused(TaskId("b"), dict(wire)))]
    assert bench.engine.tasks == {"a"}


def test_reports_come_with_the_first_token_every_40_ms_and_at_the_end() -> None:
    """Prefill and first token after 30 ms, then 4 tokens a report, then the last ones, the end, and an idle lease."""
    bench = Bench()
    bench.seated(SimulatedProgram(prompt=20, answer=7))
    bench.grant((T, 20, 100))
    heard = bench.run()
    assert [at for at, _ in heard] == [31, 71, 101, 101, 101]
    first, second, last, end, idle = (event for _, event in heard)
    assert first == hal.Report(1, (progress(20, 1, "0 "),), 1, Tokens(20), Tokens(1), 30.0, idle=False, aborted=False)
    assert second == hal.Report(
        1, (progress(24, 5, "1 ", "2 ", "3 ", "4 "),), 4, Tokens(0), Tokens(4), 40.0, idle=False, aborted=False
    )
    assert isinstance(last, hal.Report)
    assert last.progress == (progress(27, 7, "5 ", "6 "),)
    assert end == hal.Finished(T, "stop")
    assert idle == hal.Report(1, (), 0, Tokens(0), Tokens(0), 0.0, idle=True, aborted=False)


def progress(computed: int, generated: int, *text: str) -> hal.Progress:
    return hal.Progress(T, Tokens(computed), Tokens(generated), Tokens(0), text)


def test_an_answer_that_is_cut_ends_with_length() -> None:
    """By max_tokens, or by the end of the context."""
    for program, most, expected in [(SimulatedProgram(20, 50), 3, 3), (SimulatedProgram(996, 50), 100, 4)]:
        bench = Bench()
        bench.prepare(program, max_tokens=most)
        bench.run()
        bench.engine.switch_in(T, FIRST, ())
        bench.grant((T, 1000, 100), time_ms=5000)
        heard = bench.run()
        assert hal.Finished(T, "length") in [event for _, event in heard]
        text = "".join(text for _, report in reports(heard) for each in report.progress for text in each.text)
        assert text == answer_text(expected)


def test_a_lease_ends_with_its_time_at_a_step_boundary() -> None:
    """The step in hand is completed; then the lease is idle."""
    bench = Bench()
    bench.seated(SimulatedProgram(20, 100))
    bench.grant((T, 20, 100), time_ms=95)
    at, last = reports(bench.run())[-1]
    assert (at, last.idle) == (101, True)
    assert last.progress[0].generated == 8


def test_a_lease_ends_when_its_allowances_are_used_up() -> None:
    """Three tokens were allowed, and the lease goes idle long before its time."""
    bench = Bench()
    bench.seated(SimulatedProgram(20, 100))
    bench.grant((T, 20, 3))
    at, last = reports(bench.run())[-1]
    assert (at, last.idle) == (51, True)
    assert last.progress[0].generated == 3


def test_decodes_go_before_prefill_and_chunks_are_kept() -> None:
    """A step holds every decode, and of the prompts what the chunk leaves."""
    bench, other = Bench(), TaskId("o")
    bench.seated(SimulatedProgram(5, 100))
    bench.prepare(SimulatedProgram(100, 10), other)
    bench.run()
    bench.engine.switch_in(other, SequenceId(1), ())
    bench.grant((T, 5, 100))
    bench.run(16)
    bench.grant((T, 1, 100), (other, 100, 100), chunk=16, number=2)
    heard = reports(bench.run(2 + 15 + 26 + 26))
    assert [(report.number, report.steps, report.prefilled, report.decoded) for _, report in heard] == [
        (1, 1, 5, 1),
        (2, 2, 32, 2),
    ]


def test_a_prompt_that_comes_first_is_computed_alone() -> None:
    """Whole, whatever the chunk is, before the next step of the others."""
    bench, other = Bench(), TaskId("o")
    bench.seated(SimulatedProgram(5, 100))
    bench.prepare(SimulatedProgram(100, 10), other)
    bench.run()
    bench.engine.switch_in(other, SequenceId(1), ())
    bench.grant((T, 5, 100))
    bench.run(16)
    slots = (hal.Slot(other, Tokens(100), Tokens(1), alone=True), hal.Slot(T, Tokens(1), Tokens(100)))
    bench.engine.grant(hal.Quantum(2, slots, Tokens(16), Milliseconds(200), threads=1))
    heard = reports(bench.run(2 + 15 + 110))
    assert [(report.number, report.steps, report.prefilled, report.decoded) for _, report in heard] == [
        (1, 1, 5, 1),
        (2, 1, 100, 1),
    ]


def test_an_interrupt_loses_the_step_and_finds_the_commands_before_it() -> None:
    """The long prefill is thrown away at once, and the boundary takes the new lease."""
    bench = Bench()
    bench.seated(SimulatedProgram(500, 10))
    bench.grant((T, 500, 10), chunk=512)
    bench.run(100)
    bench.timeline.plan(0, lambda: None)
    bench.grant((T, 500, 10), chunk=20, number=2)
    bench.engine.interrupt()
    at, report = reports(bench.run(135))[0]
    assert (at, report.number, report.steps, report.aborted) == (100, 1, 0, True)
    _, after = reports(bench.run(200))[0]
    assert (after.number, after.progress[0].computed % 20) == (2, 0)


def test_an_interrupt_between_steps_does_nothing() -> None:
    """There is nothing to abort."""
    bench = Bench()
    bench.engine.interrupt()
    assert bench.run() == []


def test_save_and_restore() -> None:
    """The state goes into the extent, and comes back without being computed; what was done is reported first."""
    bench = Bench()
    bench.seated(SimulatedProgram(20, 30))
    bench.grant((T, 20, 5))
    bench.run()
    bench.engine.switch_out(T, save(Extent(0, 8192)))
    ((_, saved),) = bench.run()
    assert saved == hal.Saved(SegmentId(1), Tokens(0), Tokens(24), Bytes(24 * 100 + 1024), 0)
    bench.engine.switch_in(T, SequenceId(2), (piece(0, 24),))
    bench.grant((T, 1, 100), number=2)
    heard = bench.run()
    assert heard[0][1] == hal.Restored(T, Tokens(24))
    first = reports(heard)[0][1]
    assert (first.prefilled, first.progress[0].computed > 24) == (0, True)


def test_only_what_is_new_is_saved() -> None:
    """From the token on that the kernel names."""
    bench = Bench()
    bench.seated(SimulatedProgram(20, 30), piece(0, 10))
    bench.grant((T, 20, 5))
    bench.run()
    bench.engine.switch_out(T, save(Extent(8192, 8192), start=10))
    ((_, saved),) = bench.run()
    assert saved == hal.Saved(SegmentId(1), Tokens(10), Tokens(24), Bytes(14 * 100 + 1024), 0)


@pytest.mark.parametrize(("agrees", "kept", "prefilled"), [(None, 15, 5), (8, 8, 12), (0, 0, 20)])
def test_what_disagrees_with_the_prompt_is_computed(agrees: int | None, kept: int, prefilled: int) -> None:
    """Pieces are good for as many tokens as are the same."""
    bench = Bench()
    bench.seated(SimulatedProgram(20, 3, agrees=agrees), piece(0, 10), piece(10, 15, segment=2))
    bench.grant((T, 20, 5))
    heard = bench.run()
    assert heard[0][1] == hal.Restored(T, Tokens(kept))
    assert sum(report.prefilled for _, report in reports(heard)) == prefilled


@pytest.mark.parametrize(
    ("extent", "said"),
    [(None, []), (Extent(0, 3000), [hal.Saved(SegmentId(1), Tokens(0), Tokens(24), Bytes(0), 0)])],
)
def test_a_state_that_is_not_kept_is_computed_again(extent: Extent | None, said: list[hal.Event]) -> None:
    """Without an extent nothing is said; one that is too small is told as 0 bytes. The tokens stay."""
    bench = Bench()
    bench.seated(SimulatedProgram(20, 30))
    bench.grant((T, 20, 5))
    bench.run()
    bench.engine.switch_out(T, save(extent) if extent else None)
    assert [event for _, event in bench.run()] == said
    bench.engine.switch_in(T, FIRST, ())
    bench.grant((T, 25, 100), number=2)
    first = reports(bench.run())[0][1]
    assert (first.prefilled, first.progress[0].generated > 5) == (25, True)


def test_a_context_is_made_anew_when_nobody_is_in_it() -> None:
    """With other cells, and told of; with a task in it the kernel is found out."""
    bench = Bench()
    bench.engine.resize(Tokens(500))
    assert bench.run() == [(0.0, hal.Resized(M, Tokens(500), 0.0))]
    bench.seated(SimulatedProgram(20, 30))
    bench.engine.resize(Tokens(1200))
    with pytest.raises(Panic, match="have sequences"):
        bench.run()


def test_what_is_forgotten_while_it_is_prepared_is_never_heard_of() -> None:
    """Nor does it stay in the engine."""
    bench = Bench()
    bench.prepare(SimulatedProgram(20, 30))
    bench.engine.forget(T)
    assert bench.run() == []
    assert bench.engine.tasks == frozenset()


def test_a_forgotten_task_leaves_its_lease() -> None:
    """What it did is reported, and the lease goes idle."""
    bench = Bench()
    bench.seated(SimulatedProgram(20, 300))
    bench.grant((T, 20, 300), time_ms=1000)
    bench.run(55)
    bench.engine.forget(T)
    heard = reports(bench.run())
    assert [report.idle for _, report in heard] == [False, True]
    assert heard[0][1].progress[0].generated == 4
    assert bench.engine.tasks == frozenset()


def test_kill_and_stop() -> None:
    """Either way a worker tells of its death once, and does nothing more."""
    for end, why in [("kill", "killed by SIGKILL"), ("stop", "it was told to end")]:
        bench = Bench()
        bench.seated(SimulatedProgram(20, 300))
        bench.grant((T, 20, 300))
        bench.run(40)
        getattr(bench.engine, end)()
        bench.engine.kill()
        assert [event for _, event in bench.run()] == [hal.Died(M, why)]


@pytest.mark.parametrize("fault", Fault)
def test_a_poisonous_task(fault: Fault) -> None:
    """It strikes in the step after `fault_at` tokens: the worker dies, or says nothing any more."""
    bench = Bench()
    bench.seated(SimulatedProgram(20, 300, running=fault, fault_at=3))
    bench.grant((T, 20, 300))
    heard = bench.run()
    assert len(reports(heard)) == 1
    assert [event for _, event in heard[1:]] == ([hal.Died(M, "killed by SIGSEGV")] if fault is Fault.DIE else [])
    assert bench.engine.alive == (fault is Fault.HANG)


def test_more_tokens_than_cells_kill_the_worker() -> None:
    """So that a kernel that gives away more than there is is found out."""
    bench = Bench()
    for n in range(2):
        bench.prepare(SimulatedProgram(700, 10), TaskId(str(n)))
        bench.run()
        bench.engine.switch_in(TaskId(str(n)), SequenceId(n), ())
    bench.grant((TaskId("0"), 700, 10), (TaskId("1"), 700, 10), time_ms=5000)
    assert any(isinstance(event, hal.Died) and "no room in the pool" in event.why for _, event in bench.run())


def test_a_kernel_that_gives_a_sequence_twice_is_found_out() -> None:
    """Where a real worker would mix two conversations, this one panics."""
    bench = Bench()
    bench.seated(SimulatedProgram(20, 10))
    bench.prepare(SimulatedProgram(20, 10), TaskId("o"))
    bench.run()
    bench.engine.switch_in(TaskId("o"), FIRST, ())
    with pytest.raises(Panic, match="sequence 0"):
        bench.run()


def test_a_foreign_program_is_refused() -> None:
    """A real program needs a real engine."""
    submission = Submission(ClientId("c"), M, "tell me")
    with pytest.raises(Panic, match="has a str"):
        Bench().engine.prepare(Task(T, submission, 1, Milliseconds(0), None, Priority.NORMAL))


def test_a_machine_loads_workers_and_delivers_late() -> None:
    """Loading takes its time; a broken model's worker dies, and a stopped one says no more than that."""
    timeline, heard = Timeline(), list[tuple[float, hal.Event]]()
    machine = SimulatedMachine(
        {M: MODEL}, timeline, lambda model, event: heard.append((timeline.now, event)), latency_ms=5
    )
    assert machine.limits(ModelId("none")) is None
    assert sum(region.bytes for region in machine.footprint(M)) == MODEL.weights + 1200 * 100
    machine.load(M)
    machine.load(M).stop()
    machine.loading_faults[M] = Fault.DIE
    machine.load(M)
    while timeline.next_moment is not None:
        timeline.happen()
    details: dict[str, object] = {"step_ms": 10, "prefill_ms": 1}
    loaded = [(30, hal.Loading(M, 0.5)), (55, hal.Loaded(M, details))]
    assert heard == [(5, hal.Died(M, "it was told to end")), *loaded, (55, hal.Died(M, "its file is broken"))]


def test_a_simulation_is_deterministic_and_knows_when_it_never_ends() -> None:
    """Two runs of the same work are told in the same words at the same moments."""

    def run() -> list[object]:
        simulation = Simulation({M: MODEL}, latency_ms=3)
        for n in range(12):
            program = SimulatedProgram(50 + n, 10 + n)
            simulation.submit(program, priority=Priority(n % 4), session="s" if n % 3 else None)
        simulation.run()
        return [simulation.transcript.deltas, simulation.trace.events(), simulation.now]

    assert run() == run()


def test_time_passes_even_if_nothing_happens() -> None:
    """`run` for so long ends at that moment, and `step` says that nothing is left."""
    simulation = Simulation({M: MODEL})
    simulation.run(250)
    assert simulation.now == 250
    assert not simulation.step()


def test_a_step_costs_what_it_generates_reads_and_attends_to() -> None:
    """A step by itself, each generated and each prompt token, and the cells that each of them looks at."""
    model = replace(MODEL, step_ms=5, generate_ms=1, prefill_ms=0.5, generate_cell_us=2, prefill_cell_us=1)
    assert model.costs([]) == 5
    assert model.costs([(100, 1, True), (50, 1, True)]) == pytest.approx(5 + 2 + 0.3)
    assert model.costs([(0, 20, False)]) == pytest.approx(5 + 10 + 0.2)
    assert model.costs([(100, 20, True)]) == pytest.approx(5 + 1 + 10 + 2.2)


def test_what_its_worker_has_of_a_prompt_is_not_computed() -> None:
    """The first step reads the rest of it, and the count is told."""
    bench = Bench()
    bench.seated(SimulatedProgram(prompt=20, answer=0, cached=15))
    bench.grant((T, 20, 100))
    (_, report), *_ = reports(bench.run())
    assert report.prefilled == 5
    assert report.progress[0].cached == 15
