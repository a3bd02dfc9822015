"""Tests of a node's recording: what it notes of tasks and of the machine, and what it must never note."""

from pathlib import Path

import pytest

from llmasos_edge.config.board import load_board
from llmasos_edge.config.node import ModelConfig, NodeConfig, SchedulerConfig
from llmasos_edge.daemon.recording import Recording
from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulated_work import SimulatedProgram
from llmasos_edge.engine.simulation import Simulation
from llmasos_edge.errors import ShuttingDown
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.task import Outcome
from llmasos_edge.kernel.units import Bytes, ClientId, Milliseconds, ModelId, Priority, Tokens
from llmasos_edge.resources import resource
from llmasos_edge.services.workload import Workload, read
from llmasos_edge.simulate.replay import Replay

M = ModelId("m")
LIMITS = hal.Limits(Tokens(1000), Tokens(4000), 4, Bytes(1000), pinned=True)
MODEL = SimulatedModel(LIMITS, Bytes(50 << 20), 10.0, 1.0, 1.5, 1.0, 0.1, load_ms=200.0)


class Recorded(Simulation):
    """A simulated node that records itself."""

    def __init__(self, file: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__({M: MODEL}, budget=Bytes(200 << 20))
        monkeypatch.setattr("llmasos_edge.daemon.recording.monotonic_ms", lambda: self.now)
        monkeypatch.setattr("llmasos_edge.daemon.recording.DAEMON_BYTES", 0)
        scheduler = SchedulerConfig(record=file)
        board = load_board("raspberry-pi-4", resource("board"))
        config = NodeConfig("llmasos/v1", "kitchen", "home", board, (ModelConfig("m"),), scheduler=scheduler)
        self.recording = Recording(config, self.dispatcher.kernel)
        self.recording.start()

    def _receive(self, model: ModelId, event: hal.Event) -> None:
        self.recording.hear(model, event)
        super()._receive(model, event)

    def work(self) -> None:
        """A mixed load: two clients, three classes, one deadline that is missed."""
        self.do(self.syscalls.load, M)
        self.run(300)
        for number in range(40):
            priority = (Priority.NORMAL, Priority.BATCH, Priority.INTERACTIVE)[number % 3]
            program = SimulatedProgram(20 + number * 9, 5 + number * 2)
            self.submit(program, client=ClientId(f"c{number % 2}"), priority=priority)
            self.run(500)
        self.submit(SimulatedProgram(100, 200), deadline_ms=300)
        self.run()


def recorded(file: Path, monkeypatch: pytest.MonkeyPatch) -> Workload:
    simulation = Recorded(file, monkeypatch)
    simulation.work()
    simulation.recording.stop()
    return read(file)


def test_tasks_are_noted_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths, class, client, and what became of them; of the one that was cut off, the length that was foretold."""
    arrivals = recorded(tmp_path / "w", monkeypatch).arrivals
    assert len(arrivals) == 41
    first, last = arrivals[0], arrivals[-1]
    assert (first.client, first.priority, first.prompt, first.output, first.max_tokens) == ("c0", "normal", 20, 5, 256)
    assert (first.arrival_ms, first.deadline_ms) == (300, None)
    assert first.outcome is not None
    assert (first.outcome.ended, first.outcome.preemptions) == ("ok", 0)
    assert 0 < (first.outcome.response_ms or 0) < first.outcome.turnaround_ms
    assert last.outcome is not None
    assert last.outcome.ended == "deadline_exceeded"
    assert last.deadline_ms == 300
    assert last.output > 20


def test_the_machine_is_noted_with_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates are those of its steps; budget, arena and pool as they are."""
    machine = recorded(tmp_path / "w", monkeypatch).header.machine
    (model,) = machine.models
    assert (machine.budget, machine.arena, machine.cores) == (200 << 20, 64 << 20, 2)
    assert (model.name, model.cells, model.sequences, model.bytes, model.pinned) == ("m", 4000, 4, 50 << 20, True)
    assert model.load_ms == 200
    assert model.rates.step_ms + model.rates.generate_ms == pytest.approx(11, rel=0.05)
    assert model.rates.prefill_ms == pytest.approx(1.5, rel=0.05)


def test_a_replay_of_a_recording_comes_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean turnaround of each class, as near as it can be where a millisecond may decide who is preempted."""
    found = recorded(tmp_path / "w", monkeypatch)
    lives = Replay(found, "priority").run().lives
    for name in ("normal", "batch", "interactive"):
        live = [each.outcome.turnaround_ms for each in found.arrivals if each.outcome and each.priority == name]
        again = [life.turnaround_ms for life in lives if life.priority.name.lower() == name]
        assert sum(again) == pytest.approx(sum(live), rel=0.1)


def test_no_text_is_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the answers (here: numbers, one after another), not a word."""
    recorded(tmp_path / "w", monkeypatch)
    assert b"0 1 2" not in (tmp_path / "w").read_bytes()


def test_who_goes_on_after_a_restart_is_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor who was never read."""
    simulation = Recorded(tmp_path / "w", monkeypatch)
    task = simulation.submit(SimulatedProgram(20, 50))
    simulation.do(simulation.syscalls.cancel, simulation.submit(SimulatedProgram(20, 5)).id)
    simulation.run(400)
    assert task.generated
    simulation.dispatcher.end(task, Outcome(error=ShuttingDown("bye")), Milliseconds(400))
    simulation.recording.stop()
    assert read(tmp_path / "w").arrivals == []


def test_without_a_file_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method does nothing."""
    simulation = Recorded(None, monkeypatch)
    simulation.submit(SimulatedProgram(20, 5))
    simulation.run()
    simulation.recording.stop()
    assert not simulation.recording._costs
