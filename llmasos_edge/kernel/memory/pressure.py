"""Memory pressure: how short of memory those are whom the node shares it with, and what is to be done about it.

Pure: what is measured comes in, and what follows is a value.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from llmasos_edge.kernel.units import Bytes, Milliseconds

LOW_PART: Final = 16  # less than this part of the whole is short
LOW_MOST: Final = Bytes(256 << 20)
STALLED: Final = 0.1  # share of the time in which somebody waited for memory
STEP_MS: Final = 4_000  # from one level to the next while it is short
SEVERE_STEP_MS: Final = 800  # the same where it is nearly out: at each look
CALM_MS: Final = 5_000  # of calm before a level is left


class Level(IntEnum):
    """What the node does, each with all that come before it."""

    NONE = 0
    PARK = 1  # idle cells and idle sessions give back their memory
    DROP = 2  # idle models are dropped, and none is loaded
    REFUSE = 3  # new tasks are refused

    @property
    def word(self) -> str:
        return self.name.lower()


class Strain(IntEnum):
    CALM = 0
    UNEASY = 1  # nothing changes
    SHORT = 2
    SEVERE = 3


@dataclass(frozen=True, slots=True)
class Space:
    """Memory that the node shares with others: a control group with a limit, or the machine.

    `available` counts what can be taken without taking mapped pages from anybody. `stalled`: share of the time since
    the last look in which somebody waited for memory. `hits`: how often the limit was hit meanwhile.
    """

    name: str
    available: Bytes
    total: Bytes
    stalled: float = 0.0
    hits: int = 0

    @property
    def strain(self) -> Strain:
        """Whoever waits though memory is there waits at a limit of its own, which is not ours."""
        low = min(self.total // LOW_PART, LOW_MOST)
        waiting = self.stalled >= STALLED or self.hits > 0
        if self.available < low // 2 or (self.available < low and waiting):
            return Strain.SEVERE
        if self.available < low or (self.available < low * 3 // 2 and waiting):
            return Strain.SHORT
        return Strain.UNEASY if self.available < low * 3 // 2 else Strain.CALM

    @property
    def why(self) -> str:
        """For people."""
        text = f"{self.name} has {self.available >> 20} of {self.total >> 20} MiB left"
        return f"{text}, {self.stalled:.0%} of the time somebody waits for memory" if self.stalled >= STALLED else text


@dataclass(frozen=True, slots=True)
class Pressure:
    """The level, since when, why, and since when it has been calm."""

    level: Level = Level.NONE
    why: str = ""
    since: Milliseconds = Milliseconds(0)
    calm_since: Milliseconds | None = None


def after(before: Pressure, spaces: Iterable[Space], now: Milliseconds) -> Pressure:
    """One level up while it is short, one down after a while of calm.

    The last level takes severe shortage: that nothing more can be given back is no reason to turn callers away.
    """
    worst = max(spaces, key=lambda space: (space.strain, -space.available), default=None)
    strain = worst.strain if worst is not None else Strain.CALM
    if strain is Strain.CALM:
        return _calmer(before, now)
    held = replace(before, calm_since=None)
    top, patience = (Level.REFUSE, SEVERE_STEP_MS) if strain is Strain.SEVERE else (Level.DROP, STEP_MS)
    waited = before.level is Level.NONE or now - before.since >= patience
    if strain is Strain.UNEASY or before.level >= top or not waited or worst is None:
        return held
    return Pressure(Level(before.level + 1), worst.why, now)


def _calmer(before: Pressure, now: Milliseconds) -> Pressure:
    if before.level is Level.NONE:
        return before
    calm_since = now if before.calm_since is None else before.calm_since
    if now - max(calm_since, before.since) < CALM_MS:
        return replace(before, calm_since=calm_since)
    level = Level(before.level - 1)
    return Pressure(level, before.why if level else "", now, calm_since if level else None)
