"""Shares: what each client was served (VTC: Sheng et al., OSDI 2024), and what each class is owed."""

from collections.abc import Collection, Mapping
from typing import Final

from llmasos_edge.kernel.units import ClientId, Priority

GENERATED: Final = 2  # a generated token weighs as much as so many of a prompt
LOWER_SHARE: Final = 0.1  # of the computing time, for a class that waits while none of it runs
TURN_MS: Final = 400.0  # what a class must be owed to be lent a place
FEW: Final = 64  # counters that it is not worth looking through
CRITICAL_DEBT_MS: Final = 800.0  # this much more where the critical class would have to wait for it


class Shares:
    """Virtual token counters: they only grow while a client is active, and the least served comes next.

    Who is not known stands at the floor: level with the least of the active, when a client last became so.
    """

    def __init__(self) -> None:
        self._served: dict[ClientId, int] = {}
        self._floor = 0
        self._kept = 0  # counters above the floor, when those were last sought

    def served(self, client: ClientId) -> int:
        return max(self._floor, self._served.get(client, 0))

    def charge(self, client: ClientId, prompt: int, generated: int) -> None:
        self._served[client] = self.served(client) + prompt + GENERATED * generated

    def enter(self, least: int | None) -> None:
        """A client becomes active: what it left unused is not saved up, it starts level with the least of the active.

        When nobody was active (None), all are even again.
        """
        self._floor = least or 0
        if least is None:
            self._served.clear()
        if len(self._served) > 2 * self._kept + FEW:  # once for as many clients as it looks at
            self._served = {each: served for each, served in self._served.items() if served > self._floor}
            self._kept = len(self._served)


class Debts:
    """Milliseconds of computing that each class is owed: it earns while it waits and none of it runs, then spends.

    So a class under a continuous load of higher ones gets LOWER_SHARE / (1 + LOWER_SHARE) of the steps.
    """

    def __init__(self) -> None:
        self._owed: dict[Priority, float] = dict.fromkeys(Priority, 0.0)

    def owed(self, priority: Priority) -> float:
        return self._owed[priority]

    def account(self, busy_ms: float, waiting: Mapping[Priority, int], running: Collection[Priority]) -> None:
        """So long was computed; `waiting` of each class looked on."""
        for priority in self._owed:
            if priority in running:
                self._owed[priority] = max(0.0, self._owed[priority] - busy_ms)
            elif waiting.get(priority):
                most = CRITICAL_DEBT_MS + TURN_MS
                self._owed[priority] = min(most, self._owed[priority] + LOWER_SHARE * busy_ms)
            else:
                self._owed[priority] = 0.0
