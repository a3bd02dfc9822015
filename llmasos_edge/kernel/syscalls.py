"""The kernel's system calls: submit, cancel, suspend, resume, renice, and long-term admission."""

from typing import Final

from llmasos_edge.errors import BadRequest, Cancelled, NoMemory, QueueFull, ShuttingDown
from llmasos_edge.kernel.dispatcher import Dispatcher
from llmasos_edge.kernel.processor import Phase, Processor
from llmasos_edge.kernel.task import Outcome, State, Submission, Task
from llmasos_edge.kernel.units import Milliseconds, ModelId, Priority, TaskId

RETRY_MS: Final = 2_000  # where nothing is measured yet
RETRY_LEAST_MS: Final = 100
RETRY_MOST_MS: Final = 60_000


class Syscalls:
    """Called on the kernel's thread; callers see these through api."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._table = dispatcher.kernel.table
        self._trace = dispatcher.kernel.trace
        self.closing = False

    def submit(self, submission: Submission, now: Milliseconds) -> Task:
        """Admit a task. Raises UnknownModel, NoMemory (it can never fit, or not now), QueueFull, ShuttingDown.

        A task given again after a restart was admitted before: neither shortage nor the queue's bound is for it.
        """
        if self.closing:
            raise ShuttingDown("the node is shutting down", retry_after_ms=RETRY_MS)
        processor = self._dispatcher.processor(submission.model)
        self._dispatcher.kernel.loader.check_fits(processor)
        if submission.attempt == 1:
            self._dispatcher.relief.check(processor, submission, now)
            self._bound(submission, processor)
        task = self._table.make(submission, now)
        self._trace.record(now, "task.submitted", task=task.id, client=submission.client, priority=task.priority.name)
        self._dispatcher.enter(task, now)
        return task

    def cancel(self, task_id: TaskId, now: Milliseconds, why: str = "cancelled by its owner") -> Task:
        task = self._table.get(task_id)
        if task.live:
            error = Cancelled(why, details={"text": "".join(task.text)})
            self._dispatcher.end(task, Outcome(error=error), now)
        return task

    def suspend(self, task_id: TaskId, now: Milliseconds) -> Task:
        task = self._live(task_id)
        if task.state is not State.SUSPENDED:
            self._dispatcher.suspend(task, now)
        return task

    def resume(self, task_id: TaskId, now: Milliseconds) -> Task:
        task = self._live(task_id)
        if task.state is State.SUSPENDED:
            self._dispatcher.resume(task, now)
        return task

    def renice(self, task_id: TaskId, priority: Priority, now: Milliseconds) -> Task:
        task = self._live(task_id)
        self._dispatcher.processor(task.model).renice(task, priority)
        self._trace.record(now, "task.reniced", task=task.id, priority=priority.name)
        return task

    def load(self, model: ModelId, now: Milliseconds) -> None:
        """Raises UnknownModel, NoMemory (it can never fit, or not now), EngineFailed (no worker can be started)."""
        processor = self._dispatcher.processor(model)
        self._dispatcher.kernel.loader.check_fits(processor)
        if processor.phase is not Phase.UNLOADED:
            processor.leaving = False
            return
        self._dispatcher.relief.check_load()
        processor.use(Priority.NORMAL, now)
        place = self._dispatcher.kernel.loader.room(processor, now)
        if place is not None:
            self._dispatcher.workers.load(processor, place, now)
        else:
            raise NoMemory(
                f"there is no room for {model} while the models in memory are busy or pinned: try again later"
            )

    def drop(self, model: ModelId, now: Milliseconds) -> None:
        """Raises UnknownModel, BadRequest if it is busy."""
        self._dispatcher.workers.drop(self._dispatcher.processor(model), now)

    def pin(self, model: ModelId, pinned: bool, now: Milliseconds) -> None:
        """Load it and never drop it, or let it go, until the settings are read again. Raises UnknownModel, NoMemory."""
        self._dispatcher.kernel.loader.pin(self._dispatcher.processor(model), pinned, now)

    def find(self, task_id: TaskId) -> Task | None:
        return self._table.find(task_id)

    def state(self, model: ModelId) -> str:
        return self._dispatcher.processor(model).state

    def position(self, task: Task) -> int:
        """How many would be served before it, as things stand; 0 for one that runs."""
        if task.state is State.RUNNING:
            return 0
        processor = self._dispatcher.processor(task.model)
        ahead = self._dispatcher.kernel.scheduler.position(task, processor.ready, processor)
        if task.state is State.READY:
            return ahead
        return ahead + processor.newcomers.older_than(task)

    def eta(self, task: Task) -> int:
        """Milliseconds until it should have its answer, by the rates and lengths measured so far: a rough guess."""
        processor = self._dispatcher.processor(task.model)
        own = processor.cost(task, task.predicted).total_ms
        if task.state is State.RUNNING:
            return int(own)
        position, seats = self.position(task), processor.limits.sequences
        inside = sorted(processor.cost(each, each.predicted).total_ms for each in processor.running.values())
        if position < seats - len(inside):
            return int(own)
        return int(own + (sum(inside) + position * (processor.typical_ms or own)) / seats)

    def _bound(self, submission: Submission, processor: Processor) -> None:
        """Raises QueueFull. What a place takes to come free is measured."""
        targets, client = self._dispatcher.kernel.targets, submission.client
        running = [task.submission.client for each in self._dispatcher.processors() for task in each.running.values()]
        waiting = self._table.live_count - len(running)
        mine = self._table.live_of(client) - running.count(client)
        if waiting < targets.max_waiting and mine < targets.max_waiting_per_client:
            return
        a_place = (processor.typical_ms or RETRY_MS) / processor.limits.sequences
        retry = int(min(RETRY_MOST_MS, max(RETRY_LEAST_MS, a_place)))
        whose = f"{waiting} tasks" if waiting >= targets.max_waiting else f"{mine} tasks of {client}"
        raise QueueFull(f"{whose} wait already: try again later", retry_after_ms=retry)

    def _live(self, task_id: TaskId) -> Task:
        task = self._table.get(task_id)
        if not task.live:
            raise BadRequest(f"task {task_id} has ended already")
        return task
