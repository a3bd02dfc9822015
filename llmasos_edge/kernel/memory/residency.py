"""Residency: which models have the memory, and who must make room for whom: collation within a bound on waiting.

A model that has tasks is not dropped at once for a task of another one: its own are served together. When the other's
have waited for the bound, it is drained: who runs in it finishes, nobody else is admitted, and then it is dropped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from llmasos_edge.kernel.memory.replacement import Policy, Resident, make_room
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId, Priority

SERVES: Final = 4  # a model serves for so many times its load time before its turn is over for an equal class
MOSTLY: Final = 0.5
LOWER_WAITS: Final = 10  # a class waits for so many bounds before it drains a model that has tasks of a higher one


@dataclass(frozen=True, slots=True)
class Claimant:
    """A model that is not loaded, and is wanted: by tasks, the highest of this class, or since it is pinned."""

    model: ModelId
    needed: Bytes
    priority: Priority
    since: Milliseconds  # when it was wanted, and did not serve


@dataclass(frozen=True, slots=True)
class Occupant:
    """A model that has memory, and is not pinned."""

    resident: Resident
    priority: Priority  # the highest class that it has tasks of; of the last one, if it has none
    loaded_at: Milliseconds | None = Milliseconds(0)  # None: it is loading
    busy: bool = False  # it has tasks, those included that are kept out while it is drained
    empty: bool = True  # no task is in it: it can be dropped at once
    draining: bool = False
    served: bool = True  # somebody, since it was loaded
    due: bool = False  # it waited long for this turn, and has served nobody yet


@dataclass(frozen=True, slots=True)
class Load:
    """Load the model in the place of the victims. `due`: it comes before a higher class now, and must be served."""

    model: ModelId
    victims: tuple[ModelId, ...] = ()
    spared: tuple[ModelId, ...] = ()
    due: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now. `again_at`: when there may be more to do though nothing has happened."""

    loads: tuple[Load, ...] = ()
    drained: tuple[ModelId, ...] = ()
    drained_for: ModelId | None = None
    again_at: Milliseconds | None = None


def patient_until(occupant: Occupant, claimant: Claimant, bound: Milliseconds) -> Milliseconds:
    """So long the one has to wait for the other's sake."""
    if claimant.priority > occupant.priority:
        return claimant.since
    return Milliseconds(claimant.since + bound * (1 if claimant.priority == occupant.priority else LOWER_WAITS))


def yields_at(occupant: Occupant, claimant: Claimant, bound: Milliseconds) -> Milliseconds | None:
    """From when on the one must make room for the other; None: not as things are.

    An idle model that is mostly wanted again soon is kept for as long as loading it again would take: whoever used it
    is about to come back, and waiting for that costs no more than the other mistake (as in anticipatory scheduling of
    disks, Iyer and Druschel 2001).
    """
    if occupant.due:
        return None
    if claimant.priority > occupant.priority:
        return claimant.since
    if occupant.loaded_at is None or (occupant.busy and not occupant.served):
        return None
    load_ms = int(occupant.resident.load_ms)
    turn = max(patient_until(occupant, claimant, bound), occupant.loaded_at + SERVES * load_ms)
    kept = occupant.resident.used_at + load_ms if occupant.resident.returns >= MOSTLY else claimant.since
    return Milliseconds(turn if occupant.busy else min(turn, kept))


def plan(
    claimants: Sequence[Claimant],
    occupants: Sequence[Occupant],
    free: Bytes,
    policy: Policy,
    bound: Milliseconds,
    now: Milliseconds,
) -> Plan:
    """Who is loaded into the free memory and in whose place, and who is drained for whom.

    A claimant whose patience is over has the memory to itself: those behind it wait, so that small models can't take
    from a large one piece by piece what it waits for.
    """
    loads: list[Load] = []
    left = list(occupants)
    again_at = min((at for at in _moments(claimants, occupants, bound) if at > now), default=None)
    for claimant in sorted(claimants, key=lambda it: _turn(it, bound, now)):
        yielding = [it for it in left if (at := yields_at(it, claimant, bound)) is not None and at <= now]
        chosen = _choose(claimant, yielding, free, policy)
        if chosen is None:
            owed = [it.resident for it in left if patient_until(it, claimant, bound) <= now]
            if owed and make_room(claimant.needed, free, owed) is not None:
                break
            continue
        load, drained = chosen
        if drained:
            return Plan(tuple(loads), drained, claimant.model, again_at)
        loads.append(load)
        gone = [it for it in left if it.resident.model in load.victims]
        left = [it for it in left if it not in gone]
        free = Bytes(free + sum(it.resident.bytes for it in gone) - claimant.needed)
    return Plan(tuple(loads), again_at=again_at)


def _moments(
    claimants: Sequence[Claimant], occupants: Sequence[Occupant], bound: Milliseconds
) -> Iterator[Milliseconds]:
    """When one comes to yield to another, or a claimant comes before its betters."""
    for claimant in claimants:
        yield Milliseconds(claimant.since + LOWER_WAITS * bound)
        moments = (yields_at(occupant, claimant, bound) for occupant in occupants)
        yield from (moment for moment in moments if moment is not None)


def _turn(claimant: Claimant, bound: Milliseconds, now: Milliseconds) -> tuple[bool, bool, int, int]:
    """Alarms first, then who has waited longest of those who have for long, then by class."""
    patient = now < claimant.since + LOWER_WAITS * bound
    return claimant.priority < Priority.CRITICAL, patient, -claimant.priority if patient else 0, claimant.since


def _choose(
    claimant: Claimant, yielding: Sequence[Occupant], free: Bytes, policy: Policy
) -> tuple[Load, tuple[ModelId, ...]] | None:
    """Idle models, and where they are not enough some that have tasks: as few as possible, the lowest class first."""
    idle = [it.resident for it in yielding if not it.busy]
    busy = sorted((it for it in yielding if it.busy), key=lambda it: (not it.draining, it.priority, it.loaded_at or 0))
    needed, whole = claimant.needed, Bytes(free + sum(it.bytes for it in idle))
    taken = make_room(needed, whole, [it.resident for it in busy])
    if taken is None:
        return None
    chosen = [it for it in busy if it.resident.model in taken.victims]
    rest = policy(needed, Bytes(free + sum(it.resident.bytes for it in chosen)), idle)
    if rest is None:
        return None
    due = any(it.priority > claimant.priority for it in chosen)
    drained = () if all(it.empty for it in chosen) else taken.victims
    return Load(claimant.model, (*taken.victims, *rest.victims), rest.spared, due), drained
