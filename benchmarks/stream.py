"""A stream in the background: a context in which something generates, and the moments at which its text came."""

import threading
import time
from collections.abc import Generator, Mapping
from contextlib import closing, suppress
from itertools import pairwise
from types import TracebackType
from typing import Self

from benchmarks.node import BenchNode
from llmasos_edge.errors import Cancelled, Panic

Deltas = Generator[None, None, None]  # closing it hangs up, which cancels the task
PATIENCE_S = 600.0


class Stream:
    """`moments` are seconds of time.perf_counter(); leaving the context cancels what still runs."""

    def __init__(self, deltas: Deltas) -> None:
        self._deltas, self.moments = deltas, list[float]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        with closing(self._deltas):
            for _ in self._deltas:
                self.moments.append(time.perf_counter())
                if self._over.is_set():
                    return

    def first(self) -> float:
        """The moment of the first text, once it has come."""
        deadline = time.perf_counter() + PATIENCE_S
        while not self.moments:
            if not self._thread.is_alive() or time.perf_counter() > deadline:
                raise Panic("Stream.first: no text came")
            time.sleep(0.005)
        return self.moments[0]

    def gaps(self, began: float, ended: float) -> list[float]:
        """Milliseconds between one text and the next in this time, its ends included."""
        moments = [began, *(moment for moment in self.moments if began < moment < ended), ended]
        return [(later - sooner) * 1000 for sooner, later in pairwise(moments)]


def node_deltas(node: BenchNode, body: Mapping[str, object]) -> Deltas:
    """A `generate` over a connection of its own to the control socket; it ends where somebody kills the task."""
    with node.client() as client, suppress(Cancelled):
        for event in client.stream("submit", op="generate", body=dict(body)):
            if "delta" in event:
                yield
