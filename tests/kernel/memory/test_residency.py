"""Tests of residency: who makes room for whom, and when, as frozen plans."""

from llmasos_edge.kernel.memory.replacement import Resident, lru
from llmasos_edge.kernel.memory.residency import LOWER_WAITS, SERVES, Claimant, Load, Occupant, Plan, plan
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId, Priority

BOUND = Milliseconds(5000)
LOAD_MS = 300
A, B, C, D = (ModelId(name) for name in "abcd")
NORMAL, INTERACTIVE, CRITICAL = Priority.NORMAL, Priority.INTERACTIVE, Priority.CRITICAL


def claims(model: ModelId, since: int = 0, priority: Priority = NORMAL, needed: int = 10) -> Claimant:
    return Claimant(model, Bytes(needed), priority, Milliseconds(since))


def occupies(
    model: ModelId,
    *,
    used: int = 0,
    loaded: int | None = 0,
    priority: Priority = NORMAL,
    returns: float = 1.0,
    **more: bool,
) -> Occupant:
    resident = Resident(model, Bytes(10), Milliseconds(used), load_ms=LOAD_MS, returns=returns)
    return Occupant(resident, priority, None if loaded is None else Milliseconds(loaded), **more)


def busy(model: ModelId, *, empty: bool = False, **more: int | Priority | None) -> Occupant:
    return occupies(model, busy=True, empty=empty, **more)  # type: ignore[arg-type]


def at(now: int, claimants: list[Claimant], occupants: list[Occupant], free: int = 0) -> Plan:
    found = plan(claimants, occupants, Bytes(free), lru, BOUND, Milliseconds(now))
    assert found.again_at is None or found.again_at > now
    return found


def loaded(*loads: Load) -> tuple[tuple[Load, ...], tuple[ModelId, ...]]:
    return loads, ()


def what(found: Plan) -> tuple[tuple[Load, ...], tuple[ModelId, ...]]:
    return found.loads, found.drained


def test_what_fits_is_loaded_at_once() -> None:
    """Nobody is dropped for it; both run."""
    assert what(at(0, [claims(B)], [busy(A)], free=10)) == loaded(Load(B))
    assert what(at(0, [claims(B), claims(C)], [busy(A)], free=20)) == loaded(Load(B), Load(C))


def test_an_idle_model_is_kept_for_as_long_as_loading_it_would_take() -> None:
    """If whoever used it mostly comes back so soon; a higher class does not wait for that."""
    assert what(at(900, [claims(B, since=900)], [occupies(A, used=900, returns=0.4)])) == loaded(Load(B, (A,)))
    assert at(1000, [claims(B, since=900)], [occupies(A, used=900)]) == Plan(again_at=Milliseconds(900 + LOAD_MS))
    assert what(at(900 + LOAD_MS, [claims(B, since=900)], [occupies(A, used=900)])) == loaded(Load(B, (A,)))
    urgent = [claims(B, since=900, priority=INTERACTIVE)]
    assert what(at(900, urgent, [occupies(A, used=900)])) == loaded(Load(B, (A,)))


def test_a_busy_model_is_drained_when_the_bound_has_passed() -> None:
    """Not before; and it is dropped only when nothing is in it any more."""
    assert at(4999, [claims(B)], [busy(A)]) == Plan(again_at=BOUND)
    drained = at(5000, [claims(B)], [busy(A)])
    assert (drained.drained, drained.drained_for, drained.loads) == ((A,), B, ())
    assert what(at(5000, [claims(B)], [busy(A, empty=True)])) == loaded(Load(B, (A,)))


def test_a_model_just_loaded_serves_for_a_while() -> None:
    """A multiple of its load time: an equal class waits for it, a higher one does not."""
    serves = 7000 + SERVES * LOAD_MS
    assert at(8000, [claims(B)], [busy(A, loaded=7000)]).drained == ()
    assert at(serves, [claims(B)], [busy(A, loaded=7000)]).drained == (A,)
    assert at(7001, [claims(B, 7000, INTERACTIVE)], [busy(A, loaded=7000)]).drained == (A,)
    assert at(60_000, [claims(B)], [occupies(A, busy=True, empty=False, served=False)]).drained == (), (
        "its turn is to come"
    )


def test_a_lower_class_waits_longer_and_is_then_served() -> None:
    """Many bounds, but not for ever; then its turn is safe until it has begun."""
    lower, alarmed = [claims(B)], [busy(A, priority=CRITICAL)]
    assert at(LOWER_WAITS * BOUND - 1, lower, alarmed).drained == ()
    assert at(LOWER_WAITS * BOUND, lower, alarmed).drained == (A,)
    empty = [busy(A, priority=CRITICAL, empty=True)]
    assert what(at(LOWER_WAITS * BOUND, lower, empty)) == loaded(Load(B, (A,), due=True))
    turn = [occupies(B, loaded=None, busy=True, due=True)]
    assert what(at(60_000, [claims(A, 59_000, CRITICAL)], turn)) == loaded()


def test_a_load_is_given_up_for_a_higher_class_only() -> None:
    """Nobody is in it yet: it goes at once."""
    loading = [busy(A, loaded=None, empty=True)]
    assert what(at(60_000, [claims(B)], loading)) == loaded()
    assert what(at(1, [claims(B, 1, CRITICAL)], loading)) == loaded(Load(B, (A,)))


def test_idle_models_go_before_busy_ones_and_the_lowest_class_before_others() -> None:
    """As few as possible; one whose draining has begun is not let off for another."""
    batch, normal = busy(A, priority=Priority.BATCH), busy(C)
    assert what(at(6000, [claims(B)], [batch, normal, occupies(D)])) == loaded(Load(B, (D,)))
    assert at(6000, [claims(B)], [normal, batch]).drained == (A,)
    assert at(6000, [claims(B)], [batch, occupies(C, busy=True, empty=False, draining=True)]).drained == (C,)
    assert at(6000, [claims(B, needed=20)], [batch, normal]).drained == (A, C)


def test_who_is_drained_for_somebody_is_for_nobody_else() -> None:
    """A small model behind a large one must not take the room away that the large one waits for."""
    large, small = claims(B, since=0, needed=20), claims(D, since=1)
    assert at(6000, [small, large], [busy(A)], free=10) == Plan((), (A,), B, Milliseconds(50_000))
    assert what(at(4000, [small, large], [busy(A)], free=10)) == loaded(Load(D)), "its bound has not passed"


def test_nobody_is_loaded_before_one_whose_patience_is_over() -> None:
    """It waits for a model that has to serve for a while yet; one that fits meanwhile would have to serve, too."""
    large, small, fresh = claims(B, since=0, needed=20), claims(D, since=1), busy(A, loaded=4900)
    assert what(at(5000, [large, small], [fresh], free=10)) == loaded()
    assert what(at(4999, [large, small], [fresh], free=10)) == loaded(Load(D))
    higher = busy(A, loaded=4900, priority=INTERACTIVE)
    assert what(at(5000, [large, small], [higher], free=10)) == loaded(Load(D)), "it is patient with a higher class"


def test_alarms_come_first_then_who_waited_very_long_then_by_class() -> None:
    """One place, three claimants."""
    old, interactive, alarm = claims(B), claims(C, 60_000, INTERACTIVE), claims(D, 60_001, CRITICAL)
    assert what(at(60_001, [old, interactive, alarm], [], free=10)) == loaded(Load(D))
    assert what(at(60_001, [interactive, old], [], free=10)) == loaded(Load(B))
    assert what(at(30_000, [claims(B), claims(C, 29_999, INTERACTIVE)], [], free=10)) == loaded(Load(C))
