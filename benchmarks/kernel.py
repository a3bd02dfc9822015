"""The kernel's own cost: scheduling passes and system calls, as the table fills with tasks, and those with clients.

A simulated node of 16 sequences, all of them taken, and a manual clock; only the kernel's calls are timed, in processor
time of the thread, so that what else runs on the machine counts little. Tasks are of all classes, and every fourth has
a deadline, some hours off. Each round a running task is ended, a pass seats another one, a task is submitted (a
critical one every eighth time, so that passes preempt too), a pass takes it in, the worker reports, each time with a
pass, and a waiting one is asked for its place and time. The garbage collector runs as it does in the daemon.

`ready` is what becomes of a task whose prompt is counted; `promise` the same where it has a deadline: under `deadline`
that is tested against all who wait and come before it, or would be late by it.
"""

import argparse
import gc
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import median
from typing import Final, Protocol, TypeVar

from benchmarks.machine import describe
from benchmarks.report import percentile, table, verdict
from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.engine.simulation import Simulation
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.hal import Limits
from llmasos_edge.kernel.scheduling.policies import POLICIES
from llmasos_edge.kernel.task import State, Submission, Task
from llmasos_edge.kernel.units import Bytes, ClientId, ModelId, Priority, Tokens

TITLE: Final = "the kernel's own cost: a scheduling pass, submit, end, position and ETA, as tasks and clients grow"
GOAL_US: Final = 200.0
MODEL: Final = ModelId("m")
NODE: Final = SimulatedModel(
    Limits(Tokens(4096), Tokens(60_000), 16, Bytes(1024)), step_ms=5.0, prefill_ms=0.01, prepare_ms=0.0
)
PROGRAM: Final = SimulatedProgram(prompt=50, answer=9999)
CRITICAL_EVERY: Final = 8
DATED_EVERY: Final = 4
STEPS: Final = ("pass", "submit", "ready", "promise", "report", "end", "query")
T = TypeVar("T")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", type=int, nargs="+", default=[100, 1000, 10_000], metavar="N")
    parser.add_argument("--rounds", type=int, default=300, metavar="N", help="of each combination (300)")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES), metavar="POLICY")


def run(options: argparse.Namespace) -> None:
    describe("kernel")
    print(f"{options.rounds} rounds each, tasks {options.tasks}; microseconds, median / 99th percentile:\n")
    worst = dict.fromkeys(STEPS, 0.0)
    for policy in options.policies:
        rows = []
        for tasks in options.tasks:
            for clients in sorted({1, min(64, tasks), tasks}):
                found = Table(policy, tasks, clients).measure(options.rounds)
                worst = {step: max(worst[step], median(found[step])) for step in STEPS}
                figures = (f"{median(found[step]):.0f} / {percentile(found[step], 99):.0f}" for step in STEPS)
                rows.append((f"{tasks:,}", f"{clients:,}", *figures))
        table((policy, "clients", *STEPS), rows)
    for step, value in worst.items():
        print(f"{step}, the worst median: {value:.0f} us; {verdict(value, GOAL_US, at_most=True)}")
    print(flush=True)


class Timed(Protocol):
    def __call__(self, step: str, call: Callable[[], T]) -> T: ...


class Watched(Simulation):
    """Times what the kernel does about what a worker tells."""

    def __init__(self, models: Mapping[ModelId, SimulatedModel], *, policy: str, timed: Timed) -> None:
        super().__init__(models, policy=policy)
        self._timed = timed

    def _receive(self, model: ModelId, event: hal.Event) -> None:
        match event:
            case hal.Report():
                self._timed("report", lambda: self.dispatcher.report(model, event, self.now))
            case hal.Prepared():
                task = self.dispatcher.kernel.table.get(event.task)
                step = "ready" if task.deadline_at is None else "promise"
                self._timed(step, lambda: self.dispatcher.handle(event, self.now))
            case _:
                self.dispatcher.handle(event, self.now)
        self._timed("pass", lambda: self.dispatcher.dispatch(self.now))


class Table:
    """A node with so many waiting tasks, of so many clients."""

    def __init__(self, policy: str, tasks: int, clients: int) -> None:
        self._draw = random.Random(1)
        self._clients = clients
        self._made = 0
        self._took: defaultdict[str, list[float]] = defaultdict(list)
        self._node = Watched({MODEL: NODE}, policy=policy, timed=self._timed)
        self._node.do(self._node.syscalls.load, MODEL)
        self._node.run(200)
        self._waiting = [self._submit(self._submission()) for _ in range(tasks + NODE.limits.sequences)]
        self._settle()

    def measure(self, rounds: int) -> dict[str, list[float]]:
        """Microseconds of each step."""
        gc.collect()
        self._took.clear()
        for number in range(rounds):
            self._round(critical=number % CRITICAL_EVERY == 0)
        return self._took

    def _round(self, *, critical: bool) -> None:
        node, running = self._node, list(self._node.dispatcher.processor(MODEL).running)
        self._timed("end", lambda: node.syscalls.cancel(self._draw.choice(running), node.now))
        self._pass()
        submission = self._submission(critical=critical)
        self._waiting.append(self._timed("submit", lambda: self._submit(submission)))
        self._pass()
        self._settle()
        asked = self._draw.choice(self._waiting)
        if asked.state is State.READY:
            self._timed("query", lambda: (node.syscalls.position(asked), node.syscalls.eta(asked)))

    def _pass(self) -> None:
        self._timed("pass", lambda: self._node.dispatcher.dispatch(self._node.now))

    def _timed(self, step: str, call: Callable[[], T]) -> T:
        began = time.thread_time_ns()
        result = call()
        self._took[step].append((time.thread_time_ns() - began) / 1000)
        return result

    def _settle(self) -> None:
        """Prompts are prepared, and those who run get a step further."""
        self._node.dispatcher.dispatch(self._node.now)
        self._node.run(20)

    def _submit(self, submission: Submission) -> Task:
        return self._node.syscalls.submit(submission, self._node.now)

    def _submission(self, *, critical: bool = False) -> Submission:
        self._made += 1
        return self._node.submission(
            PROGRAM,
            client=ClientId(f"c{self._made % self._clients}"),
            priority=Priority.CRITICAL if critical else self._draw.choice([*Priority][:-1]),
            deadline_ms=None if self._made % DATED_EVERY else self._draw.randint(36_000_000, 72_000_000),
            max_tokens=1000,
        )
