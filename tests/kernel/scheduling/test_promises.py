"""What the policies promise, on a simulated node: nothing starves, clients are equal, deadlines hold."""

import random
from collections.abc import Callable

import pytest

from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.kernel.scheduling.policies import POLICIES
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Priority
from tests.kernel.conftest import Simulate
from tests.kernel.nodes import CheckedSimulation, M, code, limits, model
from tests.kernel.scheduling.loads import Stream, longest_pause, run

PROGRAM = SimulatedProgram(prompt=50, answer=100)
ENDLESS = SimulatedProgram(prompt=50, answer=100_000)
BATCH, NORMAL, INTERACTIVE, CRITICAL = Priority


def node(simulate: Simulate, policy: str, sequences: int) -> CheckedSimulation:
    """With cells for everybody, and its invariants checked only at the end: these loads have many events."""
    roomy = SimulatedModel(limits(context=30_000, cells=30_000, sequences=sequences))
    simulation = simulate({M: roomy}, policy=policy)
    simulation.checking = False
    return simulation


def stop(simulation: CheckedSimulation) -> None:
    simulation.check()
    for task in simulation.tasks():
        if task.live:
            simulation.do(simulation.syscalls.cancel, task.id)


@pytest.mark.parametrize("policy", ["priority", "deadline"])
@pytest.mark.parametrize(
    ("load", "sequences"), [(NORMAL, 4), (INTERACTIVE, 1), (INTERACTIVE, 4), (CRITICAL, 1)], ids=str
)
def test_batch_work_advances_under_a_load_that_never_ends(
    simulate: Simulate, policy: str, load: Priority, sequences: int
) -> None:
    """At least 5 % of the time, and each batch task once in 60 s; yet most of a single sequence is not for it."""
    simulation = node(simulate, policy, sequences)
    stream = Stream(simulation, PROGRAM, 2 * sequences, priority=load, client="others")
    simulation.run(1000)
    tasks = [simulation.submit(ENDLESS, priority=BATCH, max_tokens=20_000, client="batch") for _ in range(8)]
    seen = run(simulation, 120_000, stream)
    share = sum(any(task.priority is BATCH for task in running) for running in seen) / len(seen)
    assert share >= 0.05
    assert max(longest_pause(seen, task) for task in tasks) <= 60_000
    assert load is NORMAL or share <= 0.15
    stop(simulation)


@pytest.mark.parametrize("policy", ["priority", "deadline"])
def test_an_alarm_starts_at_once_among_starving_batch_work(simulate: Simulate, policy: str) -> None:
    """Also where the only sequence has just been lent to a batch task."""
    simulation = node(simulate, policy, sequences=1)
    stream = Stream(simulation, PROGRAM, 2, priority=INTERACTIVE)
    batch = simulation.submit(ENDLESS, priority=BATCH, max_tokens=20_000)
    while batch.state is not State.RUNNING:
        run(simulation, 20, stream)
    alarm = simulation.submit(PROGRAM, priority=CRITICAL)
    simulation.run(100)
    assert alarm.first_token_ms is not None
    stop(simulation)


@pytest.mark.parametrize("policy", ["priority", "fair-share"])
def test_a_client_with_many_tasks_gets_no_more_than_one_with_few(simulate: Simulate, policy: str) -> None:
    """200 tasks and 20: over ten seconds in which both wait, within twice of each other."""
    simulation = node(simulate, policy, sequences=4)
    many = [simulation.submit(PROGRAM, client="many") for _ in range(200)]
    simulation.run(3000)
    few = [simulation.submit(PROGRAM, client="few") for _ in range(20)]
    before = generated(many)
    simulation.run(10_000)
    ratio = generated(few) / (generated(many) - before)
    assert 0.5 <= ratio <= 2
    stop(simulation)


def generated(tasks: list[Task]) -> int:
    return sum(task.generated for task in tasks)


def turnaround(simulation: CheckedSimulation, program: SimulatedProgram, others: int) -> int:
    for _ in range(others):
        simulation.submit(program, client="many")
    simulation.run(5000)
    task = simulation.submit(program, client="one")
    while task.live:
        simulation.step()
    stop(simulation)
    assert task.ended_ms is not None
    return task.ended_ms - task.submitted_ms


@pytest.mark.parametrize("policy", ["priority", "fair-share"])
def test_a_client_with_one_task_hardly_notices_one_with_two_hundred(simulate: Simulate, policy: str) -> None:
    """Its turnaround is at most twice that of a node of its own."""
    program = SimulatedProgram(prompt=50, answer=200)
    alone = turnaround(node(simulate, policy, sequences=4), program, others=0)
    assert turnaround(node(simulate, policy, sequences=4), program, others=200) <= 2 * alone


def test_who_comes_back_has_saved_nothing_up(simulate: Simulate) -> None:
    """A client that was away while another was served shares with it from then on, and does not get all."""
    simulation = node(simulate, "fair-share", sequences=2)
    steady = [simulation.submit(PROGRAM, client="steady") for _ in range(100)]
    simulation.run(20_000)
    back = [simulation.submit(PROGRAM, client="back") for _ in range(100)]
    before = generated(steady)
    simulation.run(10_000)
    assert generated(back) <= 2 * (generated(steady) - before)
    stop(simulation)


@pytest.mark.parametrize("policy", ["fcfs", "sjf", "priority", "deadline"])
def test_equals_keep_their_places(simulate: Simulate, policy: str) -> None:
    """For as long as nobody more urgent comes."""
    simulation = node(simulate, policy, sequences=2)
    tasks = [simulation.submit(PROGRAM, client=f"c{number % 3}") for number in range(80)]
    simulation.run()
    assert max(task.preemptions for task in tasks) == 0


def test_turns_go_round(simulate: Simulate) -> None:
    """Ten endless tasks on two sequences: each has its turn, of a quantum and the time until the next report."""
    simulation = node(simulate, "round-robin", sequences=2)
    tasks = [simulation.submit(ENDLESS, max_tokens=20_000) for _ in range(10)]
    seen = run(simulation, 12_000)[50:]
    assert max(longest_pause(seen, task) for task in tasks) <= 4 * 300
    assert min(task.preemptions for task in tasks) >= 6
    stop(simulation)


def mean_turnaround(simulation: CheckedSimulation) -> float:
    """A hundred tasks of two clients, of which one asks for long answers, when the node has seen a few of each."""
    draw = random.Random(1)
    kinds: dict[str, Callable[[], int]] = {"short": lambda: draw.randint(5, 15), "long": lambda: draw.randint(150, 250)}
    names = [*kinds] * 5 + [draw.choice([*kinds]) for _ in range(100)]
    tasks: list[Task] = []
    for number, name in enumerate(names):
        tasks.append(simulation.submit(SimulatedProgram(20, kinds[name]()), client=name))
        if number < 10:
            simulation.run()
    simulation.run()
    return sum((task.ended_ms or 0) - task.submitted_ms for task in tasks[10:]) / len(tasks[10:])


def test_short_jobs_first_lowers_the_mean_turnaround(simulate: Simulate) -> None:
    """By lengths that are learned, not told: every task may generate 256 tokens."""
    first_come = mean_turnaround(node(simulate, "fcfs", sequences=2))
    assert mean_turnaround(node(simulate, "sjf", sequences=2)) <= 0.7 * first_come


@pytest.mark.parametrize("sequences", [1, 4, 16])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_deadline_that_is_accepted_is_kept(simulate: Simulate, sequences: int, seed: int) -> None:
    """At 80 % utilisation, with lengths that are known: who can't be in time is told before it runs, nobody is late."""
    draw = random.Random(seed)
    simulation = node(simulate, "deadline", sequences)
    simulation.do(simulation.syscalls.load, M)
    simulation.run(200)
    sizes = [(20, 30), (50, 100), (100, 200)]
    mean = sum(prompt + answer * 10 / sequences for prompt, answer in sizes) / len(sizes)
    tasks = []
    for _ in range(200):
        prompt, answer = draw.choice(sizes)
        simulation.run(draw.expovariate(0.8 / mean))
        deadline = int((prompt + answer * 10 + 110) * draw.uniform(1.2, 6))
        tasks.append(simulation.submit(SimulatedProgram(prompt, 9999), max_tokens=answer, deadline_ms=deadline))
    simulation.run()
    ran = [task for task in tasks if task.first_run_ms is not None]
    assert all(task.outcome is not None and task.outcome.finish_reason == "length" for task in ran)
    refused = [task for task in tasks if task.first_run_ms is None]
    assert all(code(task) == "deadline_exceeded" and (task.ended_ms or 0) - task.submitted_ms <= 2 for task in refused)
    assert len(refused) <= 0.25 * len(tasks)


def test_a_refused_deadline_says_what_it_would_take(simulate: Simulate) -> None:
    """And the task that it would have delayed is not touched; of a higher class it is not asked."""
    simulation = simulate({M: model(sequences=1)}, policy="deadline")
    simulation.do(simulation.syscalls.load, M)
    simulation.run(200)
    first = simulation.submit(ENDLESS, max_tokens=100, deadline_ms=1500)
    late = simulation.submit(ENDLESS, max_tokens=100, deadline_ms=1800)
    simulation.run(10)
    assert code(late) == "deadline_exceeded"
    assert late.outcome is not None
    assert late.outcome.error is not None
    assert "it would take 2." in late.outcome.error.message
    assert late.outcome.error.details == {"text": "", "expected_ms": pytest.approx(2260, abs=50)}
    alarm = simulation.submit(PROGRAM, priority=CRITICAL, max_tokens=100, deadline_ms=1300)
    simulation.run(10)
    assert alarm.live
    simulation.run()
    assert first.outcome is not None


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "deadline"])
def test_other_policies_try(simulate: Simulate, policy: str) -> None:
    """A deadline that can't be met is worked towards, and its text so far comes with the error."""
    simulation = simulate(policy=policy)
    task = simulation.submit(PROGRAM, deadline_ms=500)
    simulation.run()
    assert code(task) == "deadline_exceeded"
    assert task.text


def test_what_a_client_is_served_is_its_prompts_and_its_answers(simulate: Simulate) -> None:
    """A prompt once, also where it is computed again after a preemption; a generated token counts twice."""
    simulation = simulate({M: model(sequences=1)}, arena=4096)
    task = simulation.submit(PROGRAM, priority=BATCH, client="a")
    simulation.run(600)
    simulation.submit(PROGRAM, priority=CRITICAL, client="b")
    simulation.run()
    assert task.preemptions == 1
    assert simulation.dispatcher.processor(M).served(task.submission.client) == PROGRAM.prompt + 2 * PROGRAM.answer
