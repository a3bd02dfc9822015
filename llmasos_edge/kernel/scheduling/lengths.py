"""Lengths: how many tokens a task is likely to generate, learned from those that have ended."""

from collections import OrderedDict
from typing import Final

from llmasos_edge.kernel.task import Submission, Task
from llmasos_edge.kernel.units import ClientId, Tokens

SMOOTHING: Final = 0.3  # weight of the newest answer
REMEMBERED: Final = 1024  # pairs of app and client; the one unused for longest is forgotten
_Key = tuple[str | None, ClientId]


class Lengths:
    """An exponential average for each app and client. Who is new gets the average of all, at first `max_tokens`."""

    def __init__(self) -> None:
        self._averages: OrderedDict[_Key, float] = OrderedDict()
        self._overall: float | None = None

    def predict(self, submission: Submission) -> Tokens:
        """At least one token, and at most what it may generate."""
        average = self._averages.get(_key(submission), self._overall)
        most = submission.max_tokens
        return most if average is None else Tokens(max(1, min(most, round(average))))

    def learn(self, task: Task) -> None:
        """The task has ended by itself."""
        key = _key(task.submission)
        self._averages[key] = _blend(self._averages.get(key), task.generated)
        self._averages.move_to_end(key)
        if len(self._averages) > REMEMBERED:
            self._averages.popitem(last=False)
        self._overall = _blend(self._overall, task.generated)


def _key(submission: Submission) -> _Key:
    return submission.app, submission.client


def _blend(average: float | None, newest: int) -> float:
    return float(newest) if average is None else average + SMOOTHING * (newest - average)
