"""Tests of the meter: dry runs under the ledger, and what loads teach."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from llmasos_edge.config.node import ModelConfig
from llmasos_edge.daemon.estimates import Estimates
from llmasos_edge.daemon.machine import Hardware
from llmasos_edge.daemon.meter import Meter
from llmasos_edge.daemon.models import Errands
from llmasos_edge.engine.host import WorkerHost
from llmasos_edge.engine.protocol import Answer, Command
from llmasos_edge.errors import StoreError
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.loader import Loader
from llmasos_edge.kernel.memory.budget import Ledger, Region
from llmasos_edge.kernel.memory.extent import PAGE, Extent
from llmasos_edge.kernel.processor import Phase
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId
from llmasos_edge.services.arena_memory import ArenaMemory
from llmasos_edge.services.cgroup import Cgroups
from llmasos_edge.services.monitor import WorkerMemory
from llmasos_edge.services.store import ModelStore
from tests.daemon.test_machine import MIB, MODEL, MODELS

Work = Callable[[], object]


class Rig:
    """A meter whose errands wait until they are told to run."""

    def __init__(self, folder: Path, budget: int) -> None:
        store = ModelStore(folder, MODELS)
        store.pull(MODEL, lambda _progress: None)
        self.hardware = Hardware(
            models={MODEL: ModelConfig(MODEL, context=512, kv_pool=512)},
            estimates=Estimates(store, lambda work: work()),
            room=Bytes(512 * MIB),
            memory=ArenaMemory(Bytes(MIB)),
            cores=1,
            programs=lambda _task: pytest.fail("no task"),
            deliver=lambda *_: None,
            cgroups=Cgroups(None),
        )
        self.ledger = Ledger(Bytes(budget))
        self.loader = Loader(self.hardware, self.ledger, Trace())
        self.errands: list[tuple[Work, Callable[[object], None], Callable[[object], None]]] = []
        self.posted: list[Work] = []
        self.heard: list[Answer | Command] = []
        errands = cast("Errands", self)
        self.meter = Meter(
            self.hardware, self.loader, errands, self.posted.append, lambda _, event: self.heard.append(event)
        )

    def run(self, work: Work, done: Callable[[object], None], failed: Callable[[object], None]) -> None:
        self.errands.append((work, done, failed))

    def loading(self) -> None:
        """The model is being loaded, with repacked weights."""
        processor = self.loader.processor(MODEL)
        assert processor is not None
        processor.phase, processor.engine = Phase.LOADING, cast("WorkerHost", self)
        sizes = {"repacked": 1, "compute": MIB, "runtime": 30 * MIB}
        processor.regions = tuple(Region(f"{MODEL}.{name}", name, Bytes(size)) for name, size in sizes.items())


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, 100 * MIB)


def test_a_dry_run_is_charged_while_it_runs(rig: Rig) -> None:
    """What waits for the estimates goes on when all are there."""
    went_on: list[bool] = []
    rig.meter.estimate(lambda: went_on.append(True))
    ((_, done, _),) = rig.errands
    assert [region.name for region in rig.ledger.regions()] == ["dry run"]
    assert went_on == []
    rig.meter.estimate(lambda: None)
    assert len(rig.errands) == 1
    done({"compute": 20 * MIB, "output": 0, "repacks": 0})
    assert (rig.ledger.charged, went_on) == (0, [True])
    assert f"{MODEL}.compute" in {region.name for region in rig.hardware.footprint(MODEL) if region.bytes == 22 * MIB}
    rig.meter.estimate(lambda: went_on.append(True))
    assert (len(rig.errands), went_on) == (1, [True, True])


def test_one_that_fails_is_not_tried_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The formula has to do, and the log says so."""
    rig.meter.estimate(lambda: None)
    rig.errands[0][2](StoreError("its process died"))
    rig.meter.estimate(lambda: None)
    assert (rig.ledger.charged, len(rig.errands)) == (0, 1)
    assert f"no dry run of {MODEL}: its process died" in caplog.text


def test_a_dry_run_never_keeps_a_model_out(tmp_path: Path) -> None:
    """Where there is room for the largest one and no more, nobody waits for one, and it is tried again another time."""
    rig, went_on = Rig(tmp_path, 180 * MIB), list[bool]()
    assert rig.loader.processor(MODEL) is not None
    rig.meter.estimate(lambda: went_on.append(True))
    assert (went_on, rig.errands) == ([True], [])
    rig.ledger.resize(Bytes(300 * MIB))
    rig.meter.estimate(lambda: went_on.append(True))
    assert (went_on, len(rig.errands)) == ([True], 1)


def test_a_worker_that_died_with_repacked_weights_teaches_that(rig: Rig) -> None:
    """If that was while it loaded."""
    rig.meter.learn(MODEL, hal.Died(MODEL, "killed"))
    assert not rig.hardware.estimates.notes(MODEL).repack_failed
    rig.loading()
    rig.meter.learn(MODEL, hal.Died(MODEL, "killed"))
    assert rig.hardware.estimates.notes(MODEL).repack_failed


def test_workers_are_measured_every_ten_seconds(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel hears of those that are loaded; the first load's peak is kept, with what its buffers may take yet."""
    rig.loading()
    loaded = hal.Loaded(MODEL, {"memory": {"runtime": MIB, "buffers": MIB}, "sandbox": "none"})
    rig.meter.learn(MODEL, loaded)
    rig.loader.heard(loaded, Milliseconds(0))
    rig.hardware.workers[ModelId(MODEL)] = cast("WorkerHost", None)
    monkeypatch.setattr(rig.hardware, "memory", lambda _model: WorkerMemory(7 * MIB, MIB + MIB // 2))
    for now in (9_000, 10_000, 19_000, 20_000):
        rig.meter.poll(Milliseconds(now))
    assert len(rig.posted) == 2
    rig.posted[0]()
    assert rig.heard == [hal.Measured(MODEL, Bytes(8 * MIB + MIB // 2))]
    assert rig.hardware.estimates.notes(MODEL).first == {"charged": 31 * MIB + 1, "measured": 9 * MIB}


def test_the_arena_is_measured_whoever_is_loaded(rig: Rig) -> None:
    """What is parked for a model without a worker is memory, too."""
    memory, model = rig.hardware.arena, ModelId(MODEL)
    extent = Extent(0, 8 * PAGE)
    for piece in memory.pieces(model, extent, extent.size):
        piece[:] = b"x" * len(piece)
    assert rig.meter.measured()["arena"] == extent.size
    memory.discard(model, extent)
    assert rig.meter.measured()["arena"] == 0
    memory.close()
