"""Grants: the leases that a worker may be computing under, so the cores that it may be using; and its speeds."""

from collections import deque
from typing import Final

from llmasos_edge.kernel.hal import Quantum
from llmasos_edge.kernel.scheduling.batch import Rates


class Grants:
    """The lease that a worker told of last, and all that it was sent since: it computes under one of them."""

    def __init__(self) -> None:
        self._sent: Final = deque[Quantum]()

    @property
    def threads(self) -> int:
        """Cores that the worker may be computing on."""
        return max((each.threads for each in self._sent), default=0)

    @property
    def last(self) -> Quantum | None:
        """The last one with something to do."""
        return next((each for each in reversed(self._sent) if each.slots), None)

    @property
    def shrinking(self) -> bool:
        """It was sent a lease with fewer threads, or none to run, and has not told of it yet."""
        return bool(self._sent) and (not self._sent[-1].slots or self._sent[-1].threads < self.threads)

    def add(self, quantum: Quantum) -> None:
        self._sent.append(quantum)

    def confirm(self, number: int) -> Quantum | None:
        """The lease that a report tells of: those before it are over. None: it was given to a worker that is gone."""
        while self._sent and self._sent[0].number < number:
            self._sent.popleft()
        return self._sent[0] if self._sent and self._sent[0].number == number else None

    def clear(self) -> None:
        self._sent.clear()


class Speeds:
    """What was measured with each number of threads."""

    def __init__(self) -> None:
        self._rates: Final[dict[int, Rates]] = {}
        self.now = Rates()  # with as many as it was granted last

    def with_threads(self, threads: int) -> Rates:
        """A cautious guess, before anything was measured."""
        if threads not in self._rates:
            nearest = min(self._rates, key=lambda each: abs(each - threads), default=threads)
            known = self._rates.get(nearest, self.now)
            self._rates[threads] = known.scaled(max(1.0, nearest / threads))
        return self._rates[threads]

    def use(self, threads: int) -> Rates:
        self.now = self.with_threads(threads)
        return self.now
