"""Replacement: which models are dropped so that another one fits; the policies that a node file may name.

A policy keeps nothing in mind: what it goes by is accounted by the loader (loads) and the dispatcher (uses).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId

HALF_LIFE_MS: Final = 600_000  # after so long a use counts half


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that may be dropped."""

    model: ModelId
    bytes: Bytes
    used_at: Milliseconds
    load_ms: float = 0.0  # what its last load took
    uses: float = 0.0  # as Uses counts
    ring: int = 0  # its place on the clock's ring: the least comes next under the hand
    referenced: bool = False  # used since the hand passed it
    returns: float = 0.0  # how often it was wanted again, after it had fallen idle, in less time than loading takes


@dataclass(frozen=True, slots=True)
class Replacement:
    """Drop the victims. The clock's hand has passed over `spared`: they are unreferenced now, and behind all others."""

    victims: tuple[ModelId, ...] = ()
    spared: tuple[ModelId, ...] = ()


class Uses:
    """How many tasks came for a model, each counting the less the longer ago it was: an estimate of its use rate."""

    def __init__(self) -> None:
        self._count, self._at = 0.0, Milliseconds(0)

    def add(self, now: Milliseconds) -> None:
        self._count, self._at = self.count(now) + 1.0, now

    def count(self, now: Milliseconds) -> float:
        return float(self._count * 0.5 ** ((now - self._at) / HALF_LIFE_MS))


def cost(needed: Bytes, free: Bytes, residents: Sequence[Resident]) -> Replacement | None:
    """The least to be lost a byte: what reloading takes, times how likely it is."""
    return make_room(needed, free, sorted(residents, key=lambda it: (it.load_ms * it.uses / it.bytes, it.used_at)))


def lru(needed: Bytes, free: Bytes, residents: Sequence[Resident]) -> Replacement | None:
    """The least recently used."""
    return make_room(needed, free, sorted(residents, key=lambda it: it.used_at))


def clock(needed: Bytes, free: Bytes, residents: Sequence[Resident]) -> Replacement | None:
    """Second chance: the hand goes around, takes who is unreferenced, and spares the others once."""
    ring = sorted(residents, key=lambda it: it.ring)
    found = make_room(needed, free, [*(it for it in ring if not it.referenced), *(it for it in ring if it.referenced)])
    if found is None or not found.victims:
        return found
    taken = [it for it in ring if it.model in found.victims]
    around = any(it.referenced for it in taken)  # the hand has been everywhere once
    passed = [it for it in ring if it.referenced and it not in taken and (around or it.ring < taken[-1].ring)]
    return Replacement(found.victims, tuple(it.model for it in passed))


def make_room(needed: Bytes, free: Bytes, order: Iterable[Resident]) -> Replacement | None:
    """As many in this order as make room, and none in vain; no victims if there is room; None if all are not enough."""
    chosen: list[Resident] = []
    room = int(free)
    for resident in order:
        if needed <= room:
            break
        chosen.append(resident)
        room += resident.bytes
    for resident in reversed(tuple(chosen)):  # a large one may have come after small ones
        if needed <= room - resident.bytes:
            chosen.remove(resident)
            room -= resident.bytes
    return Replacement(tuple(it.model for it in chosen)) if needed <= room else None


Policy = Callable[[Bytes, Bytes, Sequence[Resident]], Replacement | None]
REPLACEMENTS: Final[Mapping[str, Policy]] = {"cost": cost, "lru": lru, "clock": clock}
