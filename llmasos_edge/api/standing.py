"""Standing: those who wait for a sequence hear every two seconds how many are before them, and how long it may take."""

from collections import deque
from collections.abc import Callable
from typing import Final

from llmasos_edge.kernel.syscalls import Syscalls
from llmasos_edge.kernel.task import State
from llmasos_edge.kernel.units import Milliseconds, TaskId

TELL_EVERY_MS: Final = 2000  # with hundreds of streams that wait, what it costs is seen

Tell = Callable[[int, int], None]  # position, and the ETA in milliseconds


class Standing:
    """On the kernel's thread; `next_tick` and `tick` are a timer of the kernel's loop."""

    def __init__(self, syscalls: Syscalls) -> None:
        self._syscalls = syscalls
        self._waiting: deque[tuple[Milliseconds, TaskId, Tell]] = deque()

    def follow(self, task: TaskId, tell: Tell, now: Milliseconds) -> None:
        """Tell of this task until it has ended."""
        self._waiting.append((Milliseconds(now + TELL_EVERY_MS), task, tell))

    def next_tick(self) -> Milliseconds | None:
        return self._waiting[0][0] if self._waiting else None

    def tick(self, now: Milliseconds) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            _, task_id, tell = self._waiting.popleft()
            task = self._syscalls.find(task_id)
            if task is None or not task.live:
                continue
            if task.state is not State.RUNNING and task.state is not State.SUSPENDED:
                tell(self._syscalls.position(task), self._syscalls.eta(task))
            self.follow(task_id, tell, now)
