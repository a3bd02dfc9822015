"""Tests of the dispatcher on simulated engines: queues, parking, preemption, sessions, cores, residency."""

from itertools import pairwise

import pytest

from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.kernel.processor import Phase
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Bytes, ModelId, Priority
from tests.kernel.conftest import Simulate
from tests.kernel.nodes import MIB, CheckedSimulation, M, code, is_ok, is_parked, limits, model

SHORT = SimulatedProgram(prompt=20, answer=10)
LONG = SimulatedProgram(prompt=100, answer=200)


def kinds(simulation: CheckedSimulation, kind: str) -> list[dict[str, object]]:
    return [event.details for event in simulation.trace.events() if event.kind == kind]


def run_until(simulation: CheckedSimulation, task: Task, state: State) -> None:
    while task.state is not state:
        assert simulation.step(), f"{task.id} never gets {state.name}"


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_more_tasks_than_sequences_all_end(simulate: Simulate, policy: str) -> None:
    """256 tasks on 16 sequences: each is answered, whole."""
    simulation = simulate(policy=policy)
    tasks = [simulation.submit(SHORT) for _ in range(256)]
    simulation.run()
    assert all(is_ok(simulation, task) for task in tasks)
    assert max(task.preemptions for task in tasks) == 0


def test_an_undisturbed_run_costs_what_its_steps_cost(simulate: Simulate) -> None:
    """Loading, preparing, one prefill step, and a step for each token: no gap between leases."""
    simulation = simulate()
    task = simulation.submit(LONG)
    simulation.run()
    assert is_ok(simulation, task)
    assert task.ended_ms == 100 + 1 + (10 + 100) + 200 * 10
    assert task.first_token_ms == 100 + 1 + 110


def test_equals_never_preempt(simulate: Simulate) -> None:
    """A full context of equals is left alone by one more of them."""
    simulation = simulate({M: model(sequences=2)})
    first = [simulation.submit(LONG), simulation.submit(LONG)]
    late = simulation.submit(SHORT)
    simulation.run()
    assert [task.preemptions for task in first] == [0, 0]
    assert late.first_run_ms is not None
    assert late.first_run_ms >= min(task.ended_ms or 0 for task in first)


def test_a_higher_class_preempts_the_newest_of_the_lowest(simulate: Simulate) -> None:
    """The victim is the batch task that came last; it is parked, and goes on without computing its prompt again."""
    simulation = simulate({M: model(sequences=3)})
    tasks = [simulation.submit(LONG, priority=which) for which in (Priority.NORMAL, Priority.BATCH, Priority.BATCH)]
    simulation.run(500)
    urgent = simulation.submit(SHORT, priority=Priority.INTERACTIVE)
    run_until(simulation, urgent, State.RUNNING)
    victim = tasks[2]
    assert [task.preemptions for task in tasks] == [0, 0, 1]
    assert (victim.state, is_parked(victim)) == (State.READY, True)
    done = victim.computed
    assert done > LONG.prompt
    run_until(simulation, victim, State.RUNNING)
    simulation.run(50)
    assert victim.computed > done, "it started over"
    simulation.run()
    assert simulation.prefilled == 3 * LONG.prompt + SHORT.prompt


def test_an_extent_holds_what_the_kernel_has_not_heard_of_yet(simulate: Simulate) -> None:
    """A task that generates while its switch-out is on its way is parked whole."""
    simulation = simulate({M: SimulatedModel(limits(sequences=1, cell_bytes=8192))}, latency_ms=30.0)
    victim = simulation.submit(LONG, priority=Priority.BATCH)
    simulation.run(700)
    urgent = simulation.submit(SHORT, priority=Priority.CRITICAL)
    simulation.run()
    assert victim.preemptions == 1
    assert simulation.prefilled == LONG.prompt + SHORT.prompt
    assert is_ok(simulation, victim)
    assert is_ok(simulation, urgent)


def test_without_room_in_the_arena_the_state_is_recomputed(simulate: Simulate) -> None:
    """A preempted task whose state can't be parked computes its tokens again, and its text is the same."""
    simulation = simulate({M: model(sequences=1)}, arena=Bytes(4096))
    victim = simulation.submit(LONG, priority=Priority.BATCH)
    simulation.run(1000)
    urgent = simulation.submit(SHORT, priority=Priority.CRITICAL)
    run_until(simulation, urgent, State.RUNNING)
    assert (is_parked(victim), victim.computed) == (False, 0)
    lost = victim.generated
    simulation.run()
    assert is_ok(simulation, victim)
    assert simulation.prefilled >= 2 * LONG.prompt + lost


def test_a_critical_task_among_many_batch_ones_starts_soon(simulate: Simulate) -> None:
    """It waits for no batch task, nor for their long step, and no two steps in a row are aborted."""
    simulation = simulate()
    tasks = [simulation.submit(SimulatedProgram(prompt=400, answer=60), priority=Priority.BATCH) for _ in range(32)]
    simulation.run(700)
    came = simulation.now
    alarm = simulation.submit(SHORT, priority=Priority.CRITICAL)
    simulation.run()
    assert all(is_ok(simulation, task) for task in [*tasks, alarm])
    assert alarm.first_token_ms is not None
    assert alarm.first_token_ms - came <= 1 + 2 * 150 + 40
    assert len(kinds(simulation, "step.aborted")) == 1


def test_no_step_is_aborted_twice_in_a_row(simulate: Simulate) -> None:
    """A burst of ever more urgent tasks aborts one long step; the next one is completed first."""
    simulation = simulate()
    simulation.submit(SimulatedProgram(prompt=1500, answer=5), priority=Priority.BATCH)
    simulation.run(150)
    for priority in (Priority.NORMAL, Priority.INTERACTIVE, Priority.CRITICAL):
        simulation.submit(SimulatedProgram(prompt=300, answer=5), priority=priority)
        simulation.run(5)
    assert len(kinds(simulation, "step.aborted")) == 1


def test_an_end_aborts_no_step_of_others(simulate: Simulate) -> None:
    """A task that ends by itself costs its mates nothing that was being computed."""
    simulation = simulate()
    simulation.submit(SHORT)
    simulation.run(150)
    simulation.submit(SimulatedProgram(prompt=1500, answer=5))
    simulation.run()
    assert kinds(simulation, "step.aborted") == []


def test_a_pool_that_fills_up_switches_the_newest_out_and_does_not_thrash(simulate: Simulate) -> None:
    """Sixteen tasks that outgrow the pool: the engine never runs out of cells, and few are switched out."""
    simulation = simulate({M: model(cells=2048)})
    tasks = [simulation.submit(SimulatedProgram(prompt=80, answer=200)) for _ in range(16)]
    simulation.run()
    assert all(is_ok(simulation, task) for task in tasks)
    assert all(task.attempt == 1 for task in tasks), "the worker died for want of cells"
    assert sum(task.preemptions for task in tasks) <= 16


@pytest.mark.parametrize("latency", [0.0, 7.0, 30.0])
def test_a_small_pool_and_slow_messages(simulate: Simulate, latency: float) -> None:
    """Whatever the kernel has not heard of yet, allowances never exceed the pool, and every text is whole."""
    simulation = simulate({M: model(cells=600, context=600, sequences=4)}, arena=Bytes(MIB // 4), latency_ms=latency)
    tasks = [
        simulation.submit(SimulatedProgram(prompt=100 + 10 * n, answer=150), priority=Priority(n % 4))
        for n in range(12)
    ]
    simulation.run()
    assert all(is_ok(simulation, task) for task in tasks)
    assert kinds(simulation, "worker.died") == []


def test_turns_of_a_session_run_in_order_one_at_a_time(simulate: Simulate) -> None:
    """Whatever their classes, a session's turns start when the one before has ended."""
    simulation = simulate()
    order = [Priority.BATCH, Priority.CRITICAL, Priority.NORMAL]
    turns = [simulation.submit(SHORT, session="s", priority=priority) for priority in order]
    other = simulation.submit(SHORT, session="other")
    assert [task.reason for task in turns] == ["model", "session", "session"]
    simulation.run()
    for before, after in pairwise(turns):
        assert before.ended_ms is not None
        assert after.first_run_ms is not None
        assert after.first_run_ms >= before.ended_ms
    assert other.first_run_ms is not None
    assert other.first_run_ms < (turns[0].ended_ms or 0)


def test_a_suspended_turn_holds_its_session_until_it_ends(simulate: Simulate) -> None:
    """The turn after a suspended one waits; a cancelled one lets it go."""
    simulation = simulate()
    first, second, third = (simulation.submit(SHORT, session="s") for _ in range(3))
    simulation.do(simulation.syscalls.suspend, first.id)
    simulation.do(simulation.syscalls.suspend, second.id)
    simulation.run()
    assert (first.state, third.state, third.reason) == (State.SUSPENDED, State.BLOCKED, "session")
    simulation.do(simulation.syscalls.cancel, first.id)
    simulation.run()
    assert (second.state, third.state) == (State.SUSPENDED, State.BLOCKED)
    simulation.do(simulation.syscalls.resume, second.id)
    simulation.run()
    assert is_ok(simulation, second)
    assert is_ok(simulation, third)


def test_a_prompt_as_long_as_the_context_is_refused_with_both_counts(simulate: Simulate) -> None:
    """Nothing is truncated: the error tells how long the prompt and the context are."""
    simulation = simulate()
    task = simulation.submit(SimulatedProgram(prompt=2048, answer=1))
    simulation.run()
    assert code(task) == "prompt_too_long"
    assert task.outcome is not None
    assert task.outcome.error is not None
    assert task.outcome.error.details == {"prompt_tokens": 2048, "context": 2048}


def test_a_refused_program_ends_alone_and_the_worker_lives(simulate: Simulate) -> None:
    """The engine's refusal reaches the caller; minutes later nobody takes the worker for hung."""
    simulation = simulate()
    refusal: dict[str, object] = {"code": "bad_request", "message": "format: not a schema"}
    refused = simulation.submit(SimulatedProgram(prompt=1, answer=1, refusal=refusal))
    simulation.run(200_000)
    fine = simulation.submit(SHORT)
    simulation.run()
    assert code(refused) == "bad_request"
    assert is_ok(simulation, fine)
    assert kinds(simulation, "worker.hung") == []


def test_two_models_share_two_cores(simulate: Simulate) -> None:
    """Both run, each on one core as soon as both want to: the check after each event counts the threads."""
    other = ModelId("other")
    simulation = simulate({M: model(), other: model()})
    tasks = [simulation.submit(LONG, model=name) for name in (M, other) for _ in range(4)]
    simulation.run(600)
    threads = [each.quantum.threads for each in simulation.dispatcher.processors() if each.quantum]
    assert threads == [1, 1]
    simulation.run()
    assert all(is_ok(simulation, task) for task in tasks)


@pytest.mark.parametrize("cores", [1, 2])
def test_three_models_on_few_cores_all_advance(simulate: Simulate, cores: int) -> None:
    """Short tasks that come and go in two models all the time don't deny the cores to a third for long."""
    names = [ModelId(name) for name in ("a", "b", "c")]
    simulation = simulate(dict.fromkeys(names, model()), cores=cores)
    simulation.checking = False
    for n in range(300):
        for name in names[:2]:
            simulation.submit(SimulatedProgram(prompt=5, answer=3 + n % 7), model=name)
    long = simulation.submit(LONG, model=names[2])
    told = [0]
    for _ in range(3):
        simulation.run(1000)
        told.append(long.generated)
    assert all(after > before for before, after in pairwise(told)), told
    assert any(task.live for task in simulation.tasks() if task.model == names[1]), "there was no rivalry"


def small_models(*names: str) -> dict[ModelId, SimulatedModel]:
    return {ModelId(name): SimulatedModel(limits(cells=2048), weights=Bytes(30 * MIB)) for name in names}


def test_models_that_do_not_fit_together_take_turns(simulate: Simulate) -> None:
    """The least recently used idle model is dropped for the one that is wanted; a busy one is waited for."""
    simulation = simulate(small_models("a", "b", "c"), budget=Bytes(80 * MIB), arena=Bytes(4 * MIB))
    tasks = [simulation.submit(LONG, model=ModelId(name)) for name in ("a", "b", "c", "a")]
    simulation.run()
    assert all(is_ok(simulation, task) for task in tasks)
    assert [details["model"] for details in kinds(simulation, "model.dropped")] == ["b"], "a had more to do"


def test_a_task_suspended_in_a_model_that_is_dropped_starts_over(simulate: Simulate) -> None:
    """A suspended task pins no model: that goes, and comes back when it is resumed; what was saved saves computing."""
    a, b = ModelId("a"), ModelId("b")
    simulation = simulate(small_models("a", "b"), budget=Bytes(50 * MIB), arena=Bytes(4 * MIB))
    task = simulation.submit(LONG, model=a)
    simulation.run(500)
    simulation.do(simulation.syscalls.suspend, task.id)
    other = simulation.submit(SHORT, model=b)
    simulation.run()
    assert is_ok(simulation, other)
    assert simulation.dispatcher.processor(a).phase is Phase.UNLOADED
    assert (task.prepared, task.computed) == (False, 0)
    assert is_parked(task)
    simulation.do(simulation.syscalls.resume, task.id)
    simulation.run()
    assert is_ok(simulation, task)
    assert task.attempt == 2
    assert simulation.prefilled == LONG.prompt + SHORT.prompt


def test_a_task_suspended_in_a_dropped_model_can_be_cancelled(simulate: Simulate) -> None:
    """There is no worker to tell, and the task ends all the same."""
    simulation = simulate()
    task = simulation.submit(LONG)
    simulation.run(500)
    simulation.do(simulation.syscalls.suspend, task.id)
    simulation.do(simulation.syscalls.drop, M)
    simulation.do(simulation.syscalls.cancel, task.id)
    assert code(task) == "cancelled"


def test_the_late_word_of_a_dropped_worker_ends_nobody(simulate: Simulate) -> None:
    """A task was done, but suspended and its model dropped before the kernel heard of it: it is run again, whole."""
    simulation = simulate(latency_ms=60.0, arena=Bytes(4096))
    task = simulation.submit(SHORT)
    simulation.run((100 + 60) + (1 + 60) + 30 + 10 * 10 + 5)
    simulation.do(simulation.syscalls.suspend, task.id)
    simulation.do(simulation.syscalls.drop, M)
    simulation.run()
    assert task.state is State.SUSPENDED
    simulation.do(simulation.syscalls.resume, task.id)
    simulation.run()
    assert is_ok(simulation, task)


def test_ten_thousand_tasks(simulate: Simulate) -> None:
    """Given again after a restart, so no bound holds; nothing about them is quadratic enough to notice."""
    simulation = simulate()
    simulation.checking = False
    tasks = [simulation.submit(SHORT, attempt=2) for _ in range(10_000)]
    simulation.run(2000)
    simulation.check()
    for task in tasks:
        simulation.do(simulation.syscalls.cancel, task.id)
    assert len(simulation.transcript.ends) == 10_000
