"""The task table: all task control blocks; the only place where they are made and reaped."""

from collections import Counter, deque
from collections.abc import Iterator
from typing import Final

from llmasos_edge.errors import Panic, UnknownTask
from llmasos_edge.kernel.task import State, Submission, Task
from llmasos_edge.kernel.units import ClientId, Milliseconds, TaskId

REMEMBERED: Final = 256  # ended tasks kept for `ps -a` and `show`


class TaskTable:
    def __init__(self, boot: int) -> None:
        self._boot = boot
        self._made = 0
        self._tasks: dict[TaskId, Task] = {}
        self._ended: deque[TaskId] = deque()
        self._live: Counter[ClientId] = Counter()
        self.live_count = 0

    def __iter__(self) -> Iterator[Task]:
        return iter(tuple(self._tasks.values()))

    def live(self) -> Iterator[Task]:
        return (task for task in self if task.live)

    def live_of(self, client: ClientId) -> int:
        return self._live[client]

    def counts(self) -> dict[str, int]:
        """How many tasks are in each state."""
        counts = {state.name: 0 for state in State}
        for task in self:
            counts[task.state.name] += 1
        return counts

    def make(self, submission: Submission, now: Milliseconds) -> Task:
        """A task in state NEW; its id is unique over restarts."""
        self._made += 1
        task_id = submission.task or TaskId(f"{self._boot}-{self._made}")
        if task_id in self._tasks:
            raise Panic(f"TaskTable.make: {task_id} is there already")
        deadline = None if submission.deadline_ms is None else Milliseconds(now + submission.deadline_ms)
        task = Task(task_id, submission, self._made, now, deadline, submission.priority, attempt=submission.attempt)
        self._tasks[task_id] = task
        self._live[submission.client] += 1
        self.live_count += 1
        return task

    def find(self, task_id: TaskId) -> Task | None:
        return self._tasks.get(task_id)

    def get(self, task_id: TaskId) -> Task:
        """Raises UnknownTask."""
        task = self._tasks.get(task_id)
        if task is None:
            raise UnknownTask(f"there is no task {task_id}: see `llmasos ps -a`")
        return task

    def reap(self, task: Task) -> None:
        """The task has ended: keep it for a while, and let go of the oldest one."""
        if task.live:
            raise Panic(f"TaskTable.reap: {task.id} is {task.state.name}")
        self.live_count -= 1
        self._live[task.submission.client] -= 1
        if not self._live[task.submission.client]:
            del self._live[task.submission.client]
        self._ended.append(task.id)
        if len(self._ended) > REMEMBERED:
            del self._tasks[self._ended.popleft()]

    def check_invariants(self) -> None:
        live = Counter(task.submission.client for task in self.live())
        if (
            live != self._live
            or len(self._tasks) - self.live_count != len(self._ended)
            or live.total() != self.live_count
        ):
            raise Panic(f"TaskTable.check_invariants: {live} live, {self._live} counted, {len(self._ended)} ended")
        for task in self:
            if (task.sequence is not None) != (task.state is State.RUNNING):
                raise Panic(f"TaskTable.check_invariants: {task.id} is {task.state.name} on {task.sequence}")
            if (task.outcome is not None) == task.live:
                raise Panic(f"TaskTable.check_invariants: {task.id} is {task.state.name}, outcome {task.outcome}")
