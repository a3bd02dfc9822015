"""Tests of slow work beside the kernel: whoever waits for it hears of its end, whatever that is."""

import queue
from collections.abc import Callable
from functools import partial

import pytest

from llmasos_edge.daemon.models import Errands
from llmasos_edge.errors import LLMasOSError, StoreError

PATIENCE_S = 10.0


class Ending:
    """Runs errands one at a time, and gives what came of the last one."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._ends: list[object] = []
        self._errands = Errands(self._inbox.put)

    def of(self, work: Callable[[], object]) -> object:
        self._errands.run(work, self._ends.append, self._ends.append)
        self._inbox.get(timeout=PATIENCE_S)()
        return self._ends[-1]


def fail(error: Exception) -> None:
    raise error


def test_a_result_is_told() -> None:
    """On the kernel's thread: it is posted there."""
    assert Ending().of(lambda: 7) == 7


def test_an_error_is_told_and_so_is_a_bug(caplog: pytest.LogCaptureFixture) -> None:
    """Ours as it is; anything else as `internal`, with its traceback in the log: nobody waits for ever."""
    ending = Ending()
    wrong = StoreError("the disk")
    assert ending.of(partial(fail, wrong)) is wrong
    bug = ending.of(partial(fail, ValueError("embedded null byte")))
    assert isinstance(bug, LLMasOSError)
    assert (bug.code, "embedded null byte" in bug.message) == ("internal", True)
    assert "an errand failed" in caplog.text
    caplog.clear()
