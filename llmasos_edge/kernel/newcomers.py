"""Newcomers: tasks of one model that are not READY yet: they wait for it, or their prompts are being prepared."""

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from typing import Final

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Priority, TaskId


class Newcomers:
    """Who waits leaves in the order of coming, or from the middle. Nothing costs more for there being many."""

    def __init__(self) -> None:
        self.waiting: Final[OrderedDict[TaskId, Task]] = OrderedDict()  # until the model is loaded, or admits tasks
        self.preparing: Final[dict[TaskId, Task]] = {}
        self._orders: Final[list[int]] = []
        self._classes: Final[Counter[Priority]] = Counter()

    def __bool__(self) -> bool:
        return bool(self._orders)

    def wait(self, task: Task) -> None:
        self.waiting[task.id] = task
        self._enter(task)

    def prepare(self, task: Task) -> None:
        self.preparing[task.id] = task
        self._enter(task)

    def leave(self, task: Task) -> bool:
        """It no longer waits. False: it did not."""
        return self._leave(self.waiting.pop(task.id, None))

    def stop_preparing(self, task: Task) -> bool:
        """False: it was not being prepared."""
        return self._leave(self.preparing.pop(task.id, None))

    def renice(self, task: Task, priority: Priority) -> None:
        """The task's class is about to change."""
        if task.id in self.waiting or task.id in self.preparing:
            self._classes[task.priority] -= 1
            self._classes[priority] += 1

    def older_than(self, task: Task) -> int:
        """How many came before it."""
        return bisect_left(self._orders, task.order)

    def classes(self) -> set[Priority]:
        return {priority for priority, count in self._classes.items() if count}

    def _enter(self, task: Task) -> None:
        insort(self._orders, task.order)
        self._classes[task.priority] += 1

    def _leave(self, task: Task | None) -> bool:
        if task is None:
            return False
        del self._orders[bisect_left(self._orders, task.order)]
        self._classes[task.priority] -= 1
        return True

    def check_invariants(self) -> None:
        tasks = [*self.waiting.values(), *self.preparing.values()]
        if self._orders != sorted(task.order for task in tasks):
            raise Panic(f"Newcomers.check_invariants: {self._orders} for {[task.id for task in tasks]}")
        if +self._classes != Counter(task.priority for task in tasks):
            raise Panic(f"Newcomers.check_invariants: {self._classes} for {[task.priority for task in tasks]}")
