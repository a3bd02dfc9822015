"""Tests of the swapper through the whole kernel: sessions keep what is computed, wherever there is room for it."""

from dataclasses import replace

import pytest

from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.engine.simulation import SimulatedMemory
from llmasos_edge.kernel.memory.arena import Arena
from llmasos_edge.kernel.memory.kv_state import KvState, Residency
from llmasos_edge.kernel.segments import Stores
from llmasos_edge.kernel.swapper import Swapper
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Bytes, ClientId, ModelId, Priority, SessionId, Tokens
from tests.kernel.conftest import Simulate
from tests.kernel.nodes import MIB, CheckedSimulation, M, is_ok, limits

TURN = SimulatedProgram(prompt=400, answer=20)
SAVED = 420  # the token that ends an answer is not of it
SWAP = Bytes(64 * MIB)
A, B = ModelId("a"), ModelId("b")


def big(cell_bytes: int = 4096, sequences: int = 4) -> SimulatedModel:
    return SimulatedModel(limits(context=2048, cells=4096, sequences=sequences, cell_bytes=cell_bytes))


def talk(simulation: CheckedSimulation, session: str, prompt: int = 400, **fields: object) -> Task:
    """One turn, to its end."""
    agrees = fields.pop("agrees", None)
    program = SimulatedProgram(prompt, 20, agrees=agrees)  # type: ignore[arg-type]
    task = simulation.submit(program, session=session, **fields)
    simulation.run()
    assert is_ok(simulation, task)
    return task


def state(simulation: CheckedSimulation, session: str) -> KvState:
    (found,) = simulation.swapper.of_session((ClientId("simulation"), SessionId(session)))
    return found


def spans(simulation: CheckedSimulation, session: str) -> list[tuple[int, int]]:
    """The tokens of each segment."""
    return [(each.start, each.end) for each in state(simulation, session).segments]


def test_a_turn_goes_on_from_the_one_before(simulate: Simulate) -> None:
    """Only its own tokens are computed, and only they are saved."""
    simulation = simulate({M: big()})
    talk(simulation, "s")
    assert (state(simulation, "s").end, state(simulation, "s").residency) == (SAVED, Residency.PARKED)
    second = talk(simulation, "s", prompt=500)
    assert second.cached_tokens == SAVED
    assert simulation.prefilled == 400 + (500 - SAVED)
    assert spans(simulation, "s") == [(0, SAVED), (SAVED, 520)]


def test_a_changed_conversation_is_computed_from_where_it_differs(simulate: Simulate) -> None:
    """What is saved beyond that is forgotten, and the next turn's segment follows what is left."""
    simulation = simulate({M: big()})
    talk(simulation, "s")
    second = talk(simulation, "s", prompt=500, agrees=300)
    assert second.cached_tokens == 300
    assert spans(simulation, "s") == [(0, 300), (300, 520)]
    third = talk(simulation, "s", prompt=600, agrees=0)
    assert third.cached_tokens == 0
    assert spans(simulation, "s") == [(0, 620)]


def test_a_cancelled_turn_leaves_what_the_one_before_had_saved(simulate: Simulate) -> None:
    """Nothing of it is kept."""
    simulation = simulate({M: big()})
    talk(simulation, "s")
    task = simulation.submit(SimulatedProgram(500, 200), session="s")
    simulation.run(200)
    assert task.state is State.RUNNING
    assert state(simulation, "s").residency is Residency.RESIDENT
    simulation.do(simulation.syscalls.cancel, task.id)
    simulation.run()
    assert state(simulation, "s").end == SAVED


def test_a_session_that_never_had_an_answer_leaves_nothing(simulate: Simulate) -> None:
    """However many names a client makes up: there is no conversation, so nothing of it is kept."""
    simulation = simulate({M: big()})
    for session in "abc":
        task = simulation.submit(SimulatedProgram(400, 20), session=session)
        simulation.run(150)
        simulation.do(simulation.syscalls.cancel, task.id)
    simulation.run()
    assert list(simulation.swapper.states()) == []


def test_what_is_no_turn_leaves_its_session_as_it_was(simulate: Simulate) -> None:
    """A bare prompt waits for the session's turns, and takes nothing from them."""
    simulation = simulate({M: big()})
    simulation.submit(SimulatedProgram(400, 20), session="s")
    for session in "st":
        bare = replace(simulation.submission(SimulatedProgram(300, 10), session=session), turn=False)
        simulation.do(simulation.syscalls.submit, bare)
    simulation.run()
    (kept,) = simulation.swapper.states()
    assert (kept.session, kept.end) == (("simulation", "s"), SAVED)


def test_the_least_recently_used_leaves_the_arena_for_the_swap_file(simulate: Simulate) -> None:
    """It is written ahead, so it leaves without a wait; and it comes back when it is talked to."""
    simulation = simulate({M: big()}, arena=Bytes(4 * MIB), swap=SWAP)
    for session in "abcd":
        talk(simulation, session)
    assert [state(simulation, session).residency.value for session in "abcd"] == [*["swapped"] * 2, *["parked"] * 2]
    written = simulation.device.written_bytes
    again = talk(simulation, "a", prompt=500)
    assert again.cached_tokens == SAVED
    assert state(simulation, "a").residency is Residency.PARKED
    assert simulation.device.written_bytes - written < 0.3 * written / 4, "more than what was new was written"


def test_without_a_swap_file_the_least_recently_used_is_dropped(simulate: Simulate) -> None:
    """Its tokens are computed again."""
    simulation = simulate({M: big()}, arena=Bytes(4 * MIB))
    for session, prompt in (("a", 400), ("b", 400), ("c", 380)):
        talk(simulation, session, prompt=prompt)
    assert [state(simulation, session).residency.value for session in "abc"] == ["dropped", "parked", "parked"]
    assert talk(simulation, "a", prompt=500).cached_tokens == 0


def test_a_full_swap_file_drops_the_least_recently_used(simulate: Simulate) -> None:
    """So it never grows, and never refuses."""
    simulation = simulate({M: big()}, arena=Bytes(4 * MIB), swap=Bytes(4 * MIB))
    for session in "abcd":
        talk(simulation, session)
    assert [state(simulation, session).residency.value for session in "ab"] == ["dropped", "dropped"]
    assert talk(simulation, "d", prompt=500).cached_tokens == SAVED


def test_what_is_quicker_computed_than_read_is_computed(simulate: Simulate) -> None:
    """A slow disk is not waited for."""
    simulation = simulate({M: big()}, arena=Bytes(2 * MIB), swap=SWAP)
    simulation.device.rate = 100.0  # bytes a millisecond: 41 ms a token, against 1 ms computed
    talk(simulation, "a")
    talk(simulation, "b")
    simulation.device._reads = 1  # its rate is known
    assert talk(simulation, "a", prompt=500).cached_tokens == 0
    assert simulation.device.read_bytes == 0


def test_a_disk_that_fails_costs_a_computation(simulate: Simulate) -> None:
    """The answer is the same, and the event is told."""
    simulation = simulate({M: big()}, arena=Bytes(2 * MIB), swap=SWAP)
    talk(simulation, "a")
    talk(simulation, "b")
    simulation.device.failing = True
    assert talk(simulation, "a", prompt=500).cached_tokens == 0
    assert "swap.failed" in [event.kind for event in simulation.trace.events()]


def test_while_its_state_comes_from_the_disk_others_compute(simulate: Simulate) -> None:
    """It has its sequence, and takes part when the state has come."""
    simulation = simulate({M: big()}, arena=Bytes(2 * MIB), swap=SWAP)
    talk(simulation, "a")
    talk(simulation, "b")
    simulation.device.rate = 5000.0  # 343 ms
    task = simulation.submit(SimulatedProgram(500, 20), session="a")
    other = simulation.submit(SimulatedProgram(10, 10))
    simulation.run(200)
    assert (task.state, task.arriving) == (State.RUNNING, True)
    assert is_ok(simulation, other)
    simulation.run()
    assert is_ok(simulation, task)
    assert task.cached_tokens == SAVED


@pytest.mark.parametrize("moment", [0, 50, 200])
def test_whoever_waits_for_the_disk_may_be_cancelled(simulate: Simulate, moment: int) -> None:
    """What was read is the session's all the same."""
    simulation = simulate({M: big()}, arena=Bytes(2 * MIB), swap=SWAP)
    talk(simulation, "a")
    talk(simulation, "b")
    simulation.device.rate = 5000.0
    task = simulation.submit(SimulatedProgram(500, 20), session="a")
    simulation.run(moment)
    simulation.do(simulation.syscalls.cancel, task.id)
    assert talk(simulation, "a", prompt=500).cached_tokens == SAVED


def test_a_session_survives_its_model(simulate: Simulate) -> None:
    """Dropped and loaded again, and with it a worker that was killed."""
    simulation = simulate({M: big()})
    talk(simulation, "s")
    simulation.do(simulation.syscalls.drop, M)
    assert talk(simulation, "s", prompt=500).cached_tokens == SAVED
    simulation.machine.engines[M].die("killed by SIGKILL")
    simulation.run()
    assert talk(simulation, "s", prompt=600).cached_tokens == 520


def test_a_session_survives_a_restart(simulate: Simulate) -> None:
    """What the index tells is adopted: the swap file knows what belongs together, and what was used last."""
    simulation = simulate({M: big()}, swap=SWAP)
    for session, prompt in (("s", 400), ("t", 400), ("s", 500)):
        talk(simulation, session, prompt=prompt)
    again = simulate({M: big()}, swap=SWAP)
    again.device.held = dict(simulation.device.held)
    again.swapper.adopt(again.device.held.values())
    assert [each.session[1] for each in again.swapper.states() if each.session] == ["t", "s"]
    assert (state(again, "s").residency, state(again, "s").end) == (Residency.SWAPPED, 520)
    assert talk(again, "s", prompt=600).cached_tokens == 520
    assert again.prefilled == 600 - 520


def test_a_power_cut_between_the_parts_of_a_turn(simulate: Simulate) -> None:
    """What follows a missing segment is forgotten; what a later one replaced is too."""
    simulation = simulate({M: big()}, swap=SWAP)
    for prompt in (400, 500, 600):
        talk(simulation, "s", prompt=prompt)
    held = dict(simulation.device.held)
    missing, disagreeing = simulate({M: big()}, swap=SWAP), simulate({M: big()}, swap=SWAP)
    missing.device.held = {number: each for number, each in held.items() if number != 2}
    missing.swapper.adopt(list(missing.device.held.values()))
    assert state(missing, "s").end == SAVED
    talk(simulation, "s", prompt=700, agrees=450)
    disagreeing.device.held = dict(simulation.device.held)
    disagreeing.swapper.adopt(list(disagreeing.device.held.values()))
    assert spans(disagreeing, "s") == [(0, SAVED), (SAVED, 450), (450, 720)]


def test_under_another_fingerprint_nothing_is_trusted(simulate: Simulate) -> None:
    """Another file under the same name, another KV type, another engine: computed again, never garbage."""
    simulation = simulate({M: big()}, swap=SWAP)
    talk(simulation, "s")
    simulation.machine.fingerprints[M] = "another"
    assert talk(simulation, "s", prompt=500).cached_tokens == 0
    assert state(simulation, "s").fingerprint == "another"
    assert len(simulation.device.held) == 1


def test_a_session_has_a_state_for_each_model(simulate: Simulate) -> None:
    """Neither is of use to the other."""
    simulation = simulate({A: big(), B: big()})
    talk(simulation, "s", model=A)
    assert talk(simulation, "s", prompt=500, model=B).cached_tokens == 0
    assert len(simulation.swapper.of_session((ClientId("simulation"), SessionId("s")))) == 2


def test_a_corrupt_segment_costs_a_computation(simulate: Simulate) -> None:
    """The worker says which one; it and what follows are forgotten, and the event is told."""
    simulation = simulate({M: big()})
    for prompt in (400, 500, 600):
        talk(simulation, "s", prompt=prompt)
    bad = state(simulation, "s").segments[1].id
    simulation.machine.engines[M].corrupt.add(bad)
    assert talk(simulation, "s", prompt=700).cached_tokens == SAVED
    assert spans(simulation, "s") == [(0, SAVED), (SAVED, 720)]
    (event,) = [event for event in simulation.trace.events() if event.kind == "session.corrupt"]
    assert (event.details["session"], event.details["segment"]) == ("s", bad)


def test_a_client_has_its_share(simulate: Simulate) -> None:
    """Beyond it, its own least recently used sessions are dropped, and nobody else's."""
    simulation = simulate({M: big()}, swap=SWAP, quota=Bytes(4 * MIB))
    talk(simulation, "other", client=ClientId("another"))
    for session in "abc":
        talk(simulation, session)
    assert [state(simulation, session).residency.value for session in "abc"] == ["dropped", "parked", "parked"]
    assert simulation.swapper.census()[Residency.PARKED] == 3


def test_idle_time_compacts_the_arena(simulate: Simulate) -> None:
    """Holes become one, and what was moved is found where it is now."""
    simulation = simulate({M: big()}, arena=Bytes(16 * MIB))
    for session in "abcdefgh":
        talk(simulation, session)
    for session in "aceg":
        simulation.swapper.forget(state(simulation, session))
    assert simulation.arena.statistics().holes > 1
    talk(simulation, "b", prompt=430)
    simulation.run(5000)
    assert simulation.arena.statistics().holes == 1
    assert talk(simulation, "h", prompt=500).cached_tokens == SAVED


def test_a_preempted_task_is_swapped_last(simulate: Simulate) -> None:
    """Idle sessions leave first, for those who wait for a sequence."""
    simulation = simulate({M: big(sequences=1)}, arena=Bytes(4 * MIB), swap=SWAP)
    talk(simulation, "idle")
    victim = simulation.submit(SimulatedProgram(400, 200), priority=Priority.BATCH)
    simulation.run(600)
    urgent = simulation.submit(SimulatedProgram(400, 5), priority=Priority.CRITICAL, session="urgent")
    simulation.run()
    assert is_ok(simulation, victim)
    assert is_ok(simulation, urgent)
    assert victim.preemptions == 1
    assert simulation.prefilled == 3 * 400
    assert state(simulation, "idle").residency is Residency.SWAPPED


def test_swapped_out_by_hand(simulate: Simulate) -> None:
    """`session park`: its RAM comes free, and its state stays."""
    simulation = simulate({M: big()}, swap=SWAP)
    talk(simulation, "s")
    simulation.swapper.swap_out(state(simulation, "s"))
    assert simulation.arena.statistics().used == 0
    assert state(simulation, "s").residency is Residency.SWAPPED
    assert talk(simulation, "s", prompt=500).cached_tokens == SAVED


def test_nothing_to_save_takes_no_room() -> None:
    """Nor does what is being saved already."""
    swapper = Swapper(Stores(Arena(Bytes(MIB), "best-fit"), SimulatedMemory()), Trace())
    assert swapper.save(KvState(M, ""), Tokens(0), Bytes(1024)) is None
    busy = KvState(M, "")
    assert swapper.save(busy, Tokens(10), Bytes(1024)) is not None
    assert swapper.save(busy, Tokens(20), Bytes(1024)) is None
