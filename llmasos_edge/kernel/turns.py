"""Turns: the tasks of one session run in order, one at a time."""

from collections import deque
from itertools import takewhile
from typing import Final

from llmasos_edge.kernel.memory.kv_state import Session
from llmasos_edge.kernel.task import Task


class Turns:
    """A line for each session that has tasks; the first of it may go. A task without a session is always first."""

    def __init__(self) -> None:
        self._lines: Final[dict[Session, deque[Task]]] = {}

    def enter(self, task: Task) -> None:
        session = _session(task)
        if session is not None:
            self._lines.setdefault(session, deque()).append(task)

    def is_first(self, task: Task) -> bool:
        session = _session(task)
        return session is None or self._lines[session][0] is task

    def before(self, task: Task) -> list[Task]:
        """Those of its session whose turns come first, in order."""
        session = _session(task)
        return [] if session is None else list(takewhile(lambda other: other is not task, self._lines[session]))

    def waiting(self, session: Session) -> int:
        """How many tasks it has."""
        return len(self._lines.get(session, ()))

    def leave(self, task: Task) -> Task | None:
        """The task has ended; the one whose turn has come by that."""
        session = _session(task)
        if session is None:
            return None
        line = self._lines[session]
        first = line[0] is task
        line.remove(task)
        if not line:
            del self._lines[session]
            return None
        return line[0] if first else None


def _session(task: Task) -> Session | None:
    session = task.submission.session
    return None if session is None else (task.submission.client, session)
