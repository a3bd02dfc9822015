"""Tests of replays: the kernel does what it does, on the machine that the file describes, and is told task by task."""

import pytest
from msgspec.structs import replace

from llmasos_edge.errors import ConfigError
from llmasos_edge.kernel.scheduling.policies import POLICIES
from llmasos_edge.kernel.units import Priority
from llmasos_edge.services.workload import Arrival, Header, Machine, Model, Rates, Settings, Workload
from llmasos_edge.simulate.generate import Recipe, generate
from llmasos_edge.simulate.replay import Replay, Replayed

MIB = 1 << 20
MODEL = Model("m", 1000, 4000, 0, 2, 1000, 50 * MIB, True, 500, 3, Rates(10, 0, 1, 0, 0))
SETTINGS = Settings("priority", 200, 150, 5000, "cost")


def replay(
    *arrivals: Arrival,
    policy: str = "priority",
    model: Model = MODEL,
    budget: int = 200 * MIB,
    arena: int = 10 * MIB,
) -> Replayed:
    header = Header(1, "a test", Machine(2, budget, arena, 0, (model,)), SETTINGS)
    return Replay(Workload(header, list(arrivals)), policy).run()


def arrival(at: int, prompt: int = 50, output: int = 10, **fields: object) -> Arrival:
    return replace(Arrival(at, "c", "m", prompt, output, 256), **fields)


def test_a_task_alone_takes_what_its_steps_cost() -> None:
    """3 ms until it is prepared, one step that reads, 10 more that write, the last of which finds that it is over."""
    (life,) = replay(arrival(1000)).lives
    assert (life.submitted_ms, life.turnaround_ms) == (1000, 3 + 60 + 10 * 10)
    assert (life.waiting_ms, life.response_ms, life.ended, life.tokens) == (3, 63, "ok", 60)


def test_a_pinned_model_is_there_when_the_first_task_comes() -> None:
    """Another one is loaded for it."""
    assert replay(arrival(0)).loads == 0
    unpinned = replay(arrival(0), model=replace(MODEL, pinned=False))
    assert unpinned.loads == 1
    assert unpinned.lives[0].turnaround_ms >= 500


def test_what_was_cached_is_not_computed() -> None:
    """Nor counted as service."""
    (life,) = replay(arrival(0, prompt=500, cached=480)).lives
    assert life.response_ms == 3 + 10 + 20
    assert life.tokens == 30


def test_who_sat_where_is_told() -> None:
    """An urgent task takes a place; its loser's state is parked, restored, and its bar has a gap."""
    done = replay(arrival(0, output=90), arrival(0, output=90), arrival(300, priority="critical"))
    assert (done.parked, done.restored) == (1, 1)
    urgent = next(life for life in done.lives if life.priority is Priority.CRITICAL)
    seats = {life.number: [seat for seat in done.seats if seat.number == life.number] for life in done.lives}
    assert sorted(len(mine) for mine in seats.values()) == [1, 1, 2]
    for life in done.lives:
        assert seats[life.number][-1].ended_ms == life.ended_ms
        assert sum(seat.ended_ms - seat.began_ms for seat in seats[life.number]) == life.turnaround_ms - life.waiting_ms
    assert urgent.turnaround_ms < 400
    for seat in done.seats:
        for other in done.seats:
            apart = seat.ended_ms <= other.began_ms or other.ended_ms <= seat.began_ms
            assert seat is other or seat.sequence != other.sequence or apart


def test_deadlines_are_missed_or_not_promised() -> None:
    """By `fcfs` they are missed while others compute, by `deadline` refused at once."""
    crowd = [arrival(0, output=200), arrival(0, output=200), arrival(10, output=200, deadline_ms=500)]
    assert [life.ended for life in replay(*crowd, policy="fcfs").lives].count("deadline_exceeded") == 1
    assert [life.ended for life in replay(*crowd, policy="deadline").lives].count("unpromised") == 1


def test_turns_of_a_session_find_what_was_said() -> None:
    """The second turn computes only what is new."""
    turns = [arrival(0, prompt=100, session="s"), arrival(2000, prompt=160, session="s")]
    first, second = replay(*turns).lives
    assert first.tokens == 110
    assert second.tokens == 160 - 110 + 10


@pytest.mark.parametrize("policy", POLICIES)
def test_every_task_of_a_mixed_workload_ends(policy: str) -> None:
    """And twice alike: nothing is left to chance."""
    workload = generate(Recipe(tasks=30, load=0.7))
    one, other = (Replay(workload, policy).run() for _ in range(2))
    assert len(one.lives) == 30
    assert one == other


def test_progress_is_told() -> None:
    """After each task."""
    told: list[int] = []
    Replay(generate(Recipe(tasks=5)), "fcfs", told.append).run()
    assert told == [1, 2, 3, 4, 5]


def test_a_machine_without_room_is_refused() -> None:
    """Before anything is replayed."""
    with pytest.raises(ConfigError, match="the workload's machine: m needs"):
        replay(arrival(0), budget=20 * MIB)
    with pytest.raises(ConfigError, match="the workload's machine: an arena of"):
        replay(arrival(0), arena=300 * MIB)


def test_tasks_that_only_push_each_other_out_are_given_up() -> None:
    """Long prompts, a quantum shorter than each takes, and no room to park: nobody would ever end."""
    crowd = [arrival(number, prompt=900, output=90) for number in range(6)]
    lives = replay(*crowd, policy="round-robin", model=replace(MODEL, sequences=1, cells=1000), arena=4096).lives
    assert [life.ended for life in lives].count("cancelled") == 6
