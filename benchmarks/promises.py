"""What policies promise, on a simulated node and a manual clock: nothing starves, clients are equal, deadlines hold.

Starvation: twice as many streams of a higher class as there are sequences, and eight batch tasks that never end.
Fairness: clients with 20 and 200 tasks that wait, every window of 10 s in which both do; and one task beside 200.

Deadlines: Poisson arrivals at 80 % of what the node computes, prompts and answers of three sizes, deadlines of 1.2 to 6
times what the task takes alone; answers are as long as `max_tokens`. The most that anybody could admit who knew the
future is bounded from above, with preemption and work that can be split at will: a node of m sequences computes m
milliseconds of decoding in each, and a prompt holds up all of them. In no interval can more be computed of the tasks
that begin and end in it (the processor demand criterion: Baruah, Rosier and Howell 1990), so the largest of them must
go until the rest fits; over disjoint intervals such losses add up. For one sequence the optimum itself would be
Lawler's dynamic programme (1990), with a fifth power of the number of tasks; it is at most this bound.
"""

import argparse
import random
from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.machine import describe
from benchmarks.report import table, verdict
from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.engine.simulation import Simulation
from llmasos_edge.kernel.hal import Limits
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Bytes, ClientId, ModelId, Priority, Tokens

TITLE: Final = "promises on a simulated node: no class starves, clients are served equally, deadlines hold"
MODEL: Final = ModelId("m")
PROGRAM: Final = SimulatedProgram(prompt=50, answer=100)
ENDLESS: Final = SimulatedProgram(prompt=50, answer=100_000)
LOOK_MS: Final = 20
WINDOW_MS: Final = 10_000
SIZES: Final = ((20, 30), (50, 100), (100, 200))  # tokens of prompt and answer
UTILISATION: Final = 0.8


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=int, default=300, metavar="S", help="of simulated starvation (300)")
    parser.add_argument("--tasks", type=int, default=200, metavar="N", help="with deadlines, in each run (200)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs with deadlines (3)")


def run(options: argparse.Namespace) -> None:
    describe("promises")
    print(f"{options.seconds} s under load; {options.tasks} tasks with deadlines, {options.seeds} seeds\n")
    head = ("starvation", "load", "sequences", "share of the steps", "goal", "longest pause, s", "goal")
    table(head, [starvation(policy, load, width, options.seconds) for policy, load, width in _loads()])
    rows = [fairness(policy) for policy in ("priority", "fair-share")]
    table(("fairness", "least ratio", "goal", "greatest", "goal", "one beside 200, times alone", "goal"), rows)
    rows = [deadlines(width, seed, options.tasks) for width in (1, 4, 16) for seed in range(1, options.seeds + 1)]
    table(("deadlines", "seed", "tasks", "admitted", "offline, at most", "share", "goal", "missed", "goal"), rows)


def node(policy: str, sequences: int) -> Simulation:
    """Loaded, with cells for everybody."""
    limits = Limits(Tokens(30_000), Tokens(500_000), sequences, Bytes(64))
    simulation = Simulation({MODEL: SimulatedModel(limits, mute=True)}, policy=policy)
    simulation.do(simulation.syscalls.load, MODEL)
    simulation.run(200)
    return simulation


# ---- starvation


def _loads() -> Iterator[tuple[str, Priority, int]]:
    for policy in ("priority", "deadline"):
        yield policy, Priority.NORMAL, 4
        yield policy, Priority.INTERACTIVE, 1
        yield policy, Priority.INTERACTIVE, 16
        yield policy, Priority.CRITICAL, 4


def starvation(policy: str, load: Priority, sequences: int, seconds: int) -> tuple[object, ...]:
    simulation, client = node(policy, sequences), ClientId("others")
    streams = [simulation.submit(PROGRAM, priority=load, client=client) for _ in range(2 * sequences)]
    simulation.run(1000)
    batch = [simulation.submit(ENDLESS, priority=Priority.BATCH, max_tokens=25_000) for _ in range(8)]
    ran, last, pause = 0, dict.fromkeys(batch, 0), 0
    looks = 1000 * seconds // LOOK_MS
    for look in range(1, looks + 1):
        simulation.run(LOOK_MS)
        streams = [task if task.live else simulation.submit(PROGRAM, priority=load, client=client) for task in streams]
        running = [task for task in batch if task.state is State.RUNNING]
        ran += bool(running)
        last |= dict.fromkeys(running, look)
        pause = max(pause, look - min(last.values()))
    share, longest = ran / looks, pause * LOOK_MS / 1000
    goals = verdict(share, 0.05, at_most=False), verdict(longest, 60, at_most=True)
    return policy, load.name.lower(), sequences, f"{share:.1%}", goals[0], f"{longest:.1f}", goals[1]


# ---- fairness


def fairness(policy: str) -> tuple[object, ...]:
    ratios = list(_ratios(policy))
    program = SimulatedProgram(prompt=50, answer=200)
    beside = turnaround(policy, program, others=200) / turnaround(policy, program, others=0)
    least, most = min(ratios), max(ratios)
    goals = verdict(least, 0.5, at_most=False), verdict(most, 2, at_most=True), verdict(beside, 2, at_most=True)
    return policy, f"{least:.2f}", goals[0], f"{most:.2f}", goals[1], f"{beside:.2f}", goals[2]


def _ratios(policy: str) -> Iterator[float]:
    """Tokens of the client with 20 tasks to those of the one with 200, in each window, begun every second."""
    simulation = node(policy, 4)
    program = SimulatedProgram(prompt=50, answer=250)
    many, few = ([simulation.submit(program, client=f"c{size}") for _ in range(size)] for size in (200, 20))
    simulation.run(1000)
    served: list[tuple[int, int]] = []
    while any(task.state is State.READY for task in few):
        served.append((_generated(few), _generated(many)))
        simulation.run(1000)
    for before, after in zip(served, served[WINDOW_MS // 1000 :], strict=False):
        yield (after[0] - before[0]) / (after[1] - before[1])


def _generated(tasks: Sequence[Task]) -> int:
    return sum(task.generated for task in tasks)


def turnaround(policy: str, program: SimulatedProgram, others: int) -> int:
    simulation = node(policy, 4)
    for _ in range(others):
        simulation.submit(program, client="many")
    simulation.run(5000)
    task = simulation.submit(program, client="one")
    while task.live and simulation.step():
        pass
    return (task.ended_ms or 0) - task.submitted_ms


# ---- deadlines


@dataclass(frozen=True, slots=True)
class Job:
    """`work` in milliseconds of one sequence, what its prompt takes of the others included."""

    begins: float
    ends: float
    work: float


def deadlines(sequences: int, seed: int, count: int) -> tuple[object, ...]:
    draw, simulation = random.Random(seed), node("deadline", sequences)
    model = SimulatedModel(Limits(Tokens(1), Tokens(1), 1, Bytes(1)))
    works = [prompt * model.prefill_ms * sequences + answer * model.step_ms for prompt, answer in SIZES]
    apart = sum(works) / len(works) / sequences / UTILISATION
    tasks, jobs = [], []
    for _ in range(count):
        simulation.run(draw.expovariate(1 / apart))
        (prompt, answer), work = draw.choice(list(zip(SIZES, works, strict=True)))
        alone = prompt * model.prefill_ms + answer * model.step_ms
        allowed = int((alone + 110) * draw.uniform(1.2, 6))
        fields = {"max_tokens": answer, "deadline_ms": allowed}
        tasks.append(simulation.submit(SimulatedProgram(prompt, 9999), **fields))
        jobs.append(Job(simulation.timeline.now, simulation.timeline.now + allowed, work))
    simulation.run()
    admitted = [task for task in tasks if task.first_run_ms is not None]
    missed = sum(task.outcome is None or task.outcome.error is not None for task in admitted)
    most = count - losses(jobs, sequences)
    share = len(admitted) / most
    goals = verdict(share, 0.9, at_most=False), verdict(missed, 0, at_most=True)
    name = f"{sequences} sequences"
    return name, seed, count, len(admitted), most, f"{share:.1%}", goals[0], missed, goals[1]


def losses(jobs: Sequence[Job], sequences: int) -> int:
    """At least so many are late, whoever decides: of disjoint intervals, the most that must be lost in all."""
    by_end = sorted(jobs, key=lambda job: job.ends)
    ends = [job.ends for job in by_end]
    lost = [0] * (len(jobs) + 1)  # up to the end of the first so many
    begins: dict[float, list[tuple[int, int]]] = {}
    for begin in sorted({job.begins for job in jobs}):
        begins[begin] = list(_overloads(by_end, begin, sequences))
    closing: dict[int, list[tuple[float, int]]] = {}
    for begin, found in begins.items():
        for number, loss in found:
            closing.setdefault(number, []).append((begin, loss))
    for number in range(1, len(jobs) + 1):
        chosen = (lost[bisect_right(ends, begin)] + loss for begin, loss in closing.get(number, ()))
        lost[number] = max(lost[number - 1], *chosen, 0)
    return lost[-1]


def _overloads(by_end: Sequence[Job], begin: float, sequences: int) -> Iterator[tuple[int, int]]:
    """Of those that begin then or later: up to the end of which of them how many must be lost."""
    inside: list[float] = []
    total = 0.0
    for number, job in enumerate(by_end, start=1):
        if job.begins < begin:
            continue
        insort(inside, job.work)
        total += job.work
        left, loss = total, 0
        while left > sequences * (job.ends - begin):
            loss += 1
            left -= inside[-loss]
        if loss:
            yield number, loss
