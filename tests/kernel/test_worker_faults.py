"""Tests of workers that die, hang or can't be loaded: nobody but the culprit pays."""

from dataclasses import replace

import pytest

from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import Fault, SimulatedProgram
from llmasos_edge.errors import EngineFailed
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.loader import OUTGROWN
from llmasos_edge.kernel.processor import Phase
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Bytes, ModelId, Priority
from llmasos_edge.kernel.workers import DEATHS_ALONE
from tests.kernel.conftest import Simulate
from tests.kernel.nodes import CheckedSimulation, M, code, is_ok, is_parked, model

PROGRAM = SimulatedProgram(prompt=50, answer=40)
POISON = SimulatedProgram(prompt=50, answer=40, running=Fault.DIE, fault_at=5)
OTHER = ModelId("other")


def count(simulation: CheckedSimulation, kind: str) -> int:
    return sum(event.kind == kind for event in simulation.trace.events())


def alone_with_a_poison(simulation: CheckedSimulation, poison: SimulatedProgram) -> None:
    """Fifteen mates, the poison among them, and a neighbour in another model."""
    mates = [simulation.submit(PROGRAM) for _ in range(8)]
    culprit = simulation.submit(poison)
    mates += [simulation.submit(PROGRAM, priority=Priority.BATCH) for _ in range(7)]
    neighbour = simulation.submit(SimulatedProgram(prompt=50, answer=250), model=OTHER)
    simulation.run()
    assert code(culprit) == "engine_failed"
    assert culprit.deaths_alone == DEATHS_ALONE
    assert all(is_ok(simulation, mate) for mate in mates)
    assert {mate.deaths_alone for mate in mates} == {0}
    assert is_ok(simulation, neighbour)
    assert (neighbour.attempt, neighbour.suspect) == (1, False)


@pytest.mark.parametrize(
    "poison",
    [
        POISON,
        SimulatedProgram(prompt=50, answer=40, running=Fault.DIE),
        SimulatedProgram(prompt=50, answer=40, running=Fault.HANG, fault_at=5),
        SimulatedProgram(prompt=50, answer=40, preparing=Fault.DIE),
        SimulatedProgram(prompt=50, answer=40, preparing=Fault.HANG),
    ],
    ids=["dies", "dies at once", "hangs", "dies while prepared", "hangs while prepared"],
)
def test_a_poisonous_task_ends_alone(simulate: Simulate, poison: SimulatedProgram) -> None:
    """It dies with its mates once and twice alone; each of the fifteen is answered, and no other model is touched."""
    simulation = simulate({M: model(), OTHER: model()})
    alone_with_a_poison(simulation, poison)
    assert count(simulation, "worker.died") == 1 + DEATHS_ALONE


def test_all_who_were_in_a_dead_worker_run_again_one_at_a_time(simulate: Simulate) -> None:
    """After one death nobody ends with an error, nobody runs beside a suspect, and new tasks wait."""
    simulation = simulate()
    tasks = [simulation.submit(PROGRAM) for _ in range(4)]
    simulation.run(500)
    simulation.machine.engines[M].die("killed by SIGKILL")
    simulation.run(200)
    late = simulation.submit(PROGRAM)
    processor = simulation.dispatcher.processor(M)
    while processor.suspects:
        simulation.step()
        assert len(processor.running) + len(processor.newcomers.preparing) <= 1
        assert late.state is State.BLOCKED or not processor.suspects
    simulation.run()
    assert all(is_ok(simulation, task) for task in [*tasks, late])
    assert [task.attempt for task in tasks] == [2] * 4


def test_tasks_that_only_waited_are_no_suspects(simulate: Simulate) -> None:
    """Who was ready, but not in the worker's hands, is prepared anew and runs with others."""
    simulation = simulate({M: model(sequences=1)})
    tasks = [simulation.submit(PROGRAM) for _ in range(3)]
    simulation.run(300)
    simulation.machine.engines[M].die("killed by SIGKILL")
    simulation.run(1)
    assert [task.suspect for task in tasks] == [True, False, False]
    simulation.run()
    assert all(is_ok(simulation, task) for task in tasks)


def test_a_suspended_suspect_blocks_nobody(simulate: Simulate) -> None:
    """The quarantine skips it; resumed, it waits for those who run, and is alone then."""
    simulation = simulate()
    first, second = simulation.submit(PROGRAM), simulation.submit(PROGRAM)
    simulation.run(300)
    simulation.machine.engines[M].die("killed by SIGKILL")
    simulation.run(1)
    simulation.do(simulation.syscalls.suspend, first.id)
    third = simulation.submit(PROGRAM)
    simulation.run()
    assert is_ok(simulation, second)
    assert is_ok(simulation, third)
    fourth = simulation.submit(PROGRAM)
    simulation.run(50)
    simulation.do(simulation.syscalls.resume, first.id)
    while first.live:
        simulation.step()
        assert first.state is not State.RUNNING or len(simulation.dispatcher.processor(M).running) == 1
    assert is_ok(simulation, first)
    assert is_ok(simulation, fourth)


def test_a_suspect_suspended_while_it_is_prepared(simulate: Simulate) -> None:
    """The next suspect waits until the engine is done with it, and then takes its turn."""
    simulation = simulate()
    first, second = simulation.submit(PROGRAM), simulation.submit(PROGRAM)
    simulation.run(300)
    simulation.machine.engines[M].die("killed by SIGKILL")
    while first.state is not State.NEW:
        simulation.step()
    simulation.do(simulation.syscalls.suspend, first.id)
    assert second.state is State.BLOCKED
    simulation.run()
    assert is_ok(simulation, second)
    simulation.do(simulation.syscalls.resume, first.id)
    simulation.run()
    assert is_ok(simulation, first)


def test_a_suspect_that_is_cancelled_lets_the_others_go_on(simulate: Simulate) -> None:
    """The quarantine ends with it."""
    simulation = simulate()
    first, second = simulation.submit(PROGRAM), simulation.submit(PROGRAM)
    simulation.run(300)
    simulation.machine.engines[M].die("killed by SIGKILL")
    simulation.run(1)
    simulation.do(simulation.syscalls.cancel, first.id)
    simulation.run()
    assert code(first) == "cancelled"
    assert is_ok(simulation, second)


def test_parked_state_survives_its_worker(simulate: Simulate) -> None:
    """A suspended task starts over when it is resumed, but does not compute again what was saved."""
    simulation = simulate()
    task = simulation.submit(PROGRAM)
    simulation.run(400)
    simulation.do(simulation.syscalls.suspend, task.id)
    simulation.run(1)
    assert is_parked(task)
    simulation.machine.engines[M].die("killed by SIGKILL")
    simulation.run(1)
    assert task.state is State.SUSPENDED
    assert is_parked(task)
    simulation.do(simulation.syscalls.resume, task.id)
    simulation.run()
    assert is_ok(simulation, task)
    assert simulation.prefilled == PROGRAM.prompt


@pytest.mark.parametrize("fault", list(Fault))
def test_a_model_that_can_not_be_loaded(simulate: Simulate, fault: Fault) -> None:
    """Whoever waits for it ends with engine_failed and every byte comes back; the next submit tries again."""
    simulation = simulate()
    simulation.machine.loading_faults[M] = fault
    tasks = [simulation.submit(PROGRAM), *(simulation.submit(PROGRAM, session="s") for _ in range(2))]
    simulation.run()
    assert {code(task) for task in tasks} == {"engine_failed"}
    assert simulation.dispatcher.processor(M).phase is Phase.UNLOADED
    assert [region.name for region in simulation.ledger.regions()] == ["arena"]
    del simulation.machine.loading_faults[M]
    again = simulation.submit(PROGRAM)
    simulation.run()
    assert is_ok(simulation, again)


def test_an_idle_worker_that_dies_is_loaded_when_it_is_wanted(simulate: Simulate) -> None:
    """Its death harms nobody, and its memory is free until then."""
    simulation = simulate()
    first = simulation.submit(PROGRAM)
    simulation.run()
    simulation.machine.engines[M].die("killed by the OOM killer")
    simulation.run()
    assert simulation.dispatcher.processor(M).phase is Phase.UNLOADED
    second = simulation.submit(PROGRAM)
    simulation.run()
    assert is_ok(simulation, first)
    assert is_ok(simulation, second)
    assert not second.suspect


def test_a_long_step_is_no_hang(simulate: Simulate) -> None:
    """A worker is given many times what its steps are expected to take."""
    simulation = simulate()
    task = simulation.submit(SimulatedProgram(prompt=2000, answer=40))
    simulation.run()
    assert is_ok(simulation, task)
    assert count(simulation, "worker.hung") == 0


def test_a_cancelled_preparation_leaves_no_alarm_behind(simulate: Simulate) -> None:
    """Minutes after a task was cancelled while it was prepared, its healthy worker still lives."""
    simulation = simulate()
    simulation.submit(PROGRAM)
    simulation.run()
    task = simulation.submit(PROGRAM)
    assert task.state is State.NEW
    simulation.do(simulation.syscalls.cancel, task.id)
    simulation.run(200_000)
    assert count(simulation, "worker.died") == 0


def test_a_worker_that_hangs_with_the_last_task_cancelled(simulate: Simulate) -> None:
    """It still owes the end of its lease: it is found out and killed before anybody else is given to it."""
    simulation = simulate()
    task = simulation.submit(SimulatedProgram(prompt=50, answer=40, running=Fault.HANG, fault_at=5))
    simulation.run(400)
    simulation.do(simulation.syscalls.cancel, task.id)
    simulation.run()
    assert count(simulation, "worker.hung") == 1
    assert simulation.dispatcher.processor(M).phase is Phase.UNLOADED


def test_traffic_does_not_hide_a_worker_that_hangs(simulate: Simulate) -> None:
    """System calls renew its lease; only its own reports show that it lives."""
    simulation = simulate()
    simulation.submit(SimulatedProgram(prompt=50, answer=40, running=Fault.HANG, fault_at=5))
    waiting = simulation.submit(PROGRAM)
    for _ in range(150):
        simulation.run(100)
        simulation.do(simulation.syscalls.renice, waiting.id, Priority.NORMAL)
    assert count(simulation, "worker.hung") >= 1


def test_a_worker_that_can_not_be_started_fails_its_tasks(simulate: Simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process to be had, or the file is gone: the tasks say so, nothing stays charged, and later it works."""
    simulation = simulate()
    free = simulation.ledger.free

    def refuse(_: ModelId) -> None:
        raise EngineFailed("there is no file")

    with monkeypatch.context() as broken:
        broken.setattr(simulation.machine, "load", refuse)
        task = simulation.submit(PROGRAM)
        with pytest.raises(EngineFailed, match="there is no file"):
            simulation.do(simulation.syscalls.load, M)
    assert code(task) == "engine_failed"
    assert simulation.ledger.free == free
    task = simulation.submit(PROGRAM)
    simulation.run()
    assert is_ok(simulation, task)


def test_a_worker_that_dies_while_it_loads_is_started_once_more(simulate: Simulate) -> None:
    """Somebody else may have needed its memory: whoever waits for it is answered."""
    simulation = simulate()
    task = simulation.submit(PROGRAM)
    simulation.machine.engines[M].die("killed by the OOM killer")
    simulation.run()
    assert is_ok(simulation, task)
    assert count(simulation, "worker.died") == 1


def test_a_pinned_model_is_loaded_again_when_its_idle_worker_dies(simulate: Simulate) -> None:
    """Pinned means that it stays loaded; but a file that is broken by now is not tried for ever."""
    simulation = simulate({M: SimulatedModel(replace(model().limits, pinned=True))})
    simulation.do(simulation.syscalls.load, M)
    simulation.run()
    simulation.machine.engines[M].die("killed by SIGKILL")
    simulation.run()
    assert simulation.dispatcher.processor(M).phase is Phase.LOADED
    simulation.machine.loading_faults[M] = Fault.DIE
    simulation.machine.engines[M].die("killed by SIGKILL")
    simulation.run()
    assert count(simulation, "model.loading") == 4
    assert simulation.dispatcher.processor(M).phase is Phase.UNLOADED


def begin(simulation: CheckedSimulation, task: Task) -> None:
    """Until it has generated something."""
    while not task.generated:
        simulation.step()


def measure(simulation: CheckedSimulation, beyond: int) -> None:
    """The worker takes so much more than all that it is charged."""
    charged = sum(region.bytes for region in simulation.dispatcher.processor(M).regions)
    simulation.do(simulation.dispatcher.handle, hal.Measured(M, Bytes(charged + beyond)))


def test_what_a_worker_takes_beyond_its_charge_is_charged(simulate: Simulate) -> None:
    """If there is room; what is less than its charge changes nothing; it all goes back with the worker."""
    simulation = simulate()
    task = simulation.submit(PROGRAM)
    begin(simulation, task)
    before = simulation.ledger.charged
    measure(simulation, -1000)
    assert simulation.ledger.charged == before
    measure(simulation, 5000)
    assert simulation.ledger.charged == before + 5000
    simulation.ledger.resize(simulation.ledger.charged)
    measure(simulation, 1)
    assert simulation.ledger.charged == before + 5000
    simulation.run()
    assert is_ok(simulation, task)


def test_a_worker_that_outgrows_its_charge_is_restarted(simulate: Simulate) -> None:
    """Little by little or at once. Its tasks are answered, together, and none is a suspect."""
    simulation = simulate()
    tasks = [simulation.submit(PROGRAM) for _ in range(4)]
    begin(simulation, tasks[0])
    measure(simulation, OUTGROWN // 2)
    assert count(simulation, "worker.outgrown") == 0
    measure(simulation, OUTGROWN // 2 + 1)
    assert count(simulation, "worker.outgrown") == 1
    while not count(simulation, "worker.died"):
        simulation.step()
    assert not any(task.suspect for task in tasks)
    simulation.run()
    assert count(simulation, "worker.died") == 1
    assert all(is_ok(simulation, task) for task in tasks)


def test_tasks_of_an_outgrown_worker_go_on_from_what_is_saved(simulate: Simulate) -> None:
    """A session's earlier turns and a parked task are restored in the next worker; only what was not saved is lost."""
    simulation = simulate({M: model(context=2048, cells=4096, sequences=1)}, swap=Bytes(64 << 20))
    first = simulation.submit(SimulatedProgram(prompt=800, answer=100), session="s")
    simulation.run()
    parked = simulation.submit(SimulatedProgram(prompt=600, answer=200))
    begin(simulation, parked)
    turn = simulation.submit(SimulatedProgram(prompt=920, answer=40), session="s", priority=Priority.INTERACTIVE)
    begin(simulation, turn)
    assert is_parked(parked)
    computed = simulation.prefilled
    measure(simulation, OUTGROWN + 1)
    simulation.run()
    assert count(simulation, "worker.outgrown") == 1
    assert all(is_ok(simulation, task) for task in (first, parked, turn))
    assert simulation.prefilled - computed < 200, "what was saved was computed again"
