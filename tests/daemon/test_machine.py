"""Tests of the machine that the kernel sees: what a worker may take of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos_edge.config.node import ModelConfig
from llmasos_edge.daemon.machine import LIMIT_MARGIN_BYTES, Hardware
from llmasos_edge.engine.host import WorkerHost
from llmasos_edge.kernel.units import Bytes, ModelId
from llmasos_edge.services.arena_memory import ArenaMemory
from llmasos_edge.services.cgroup import Cgroups
from llmasos_edge.services.store import ModelStore

MODEL = ModelId("smollm2-135m")
ARENA = Bytes(8 << 20)
ROOM = Bytes(512 << 20)


@pytest.fixture
def hardware(tmp_path: Path) -> Iterator[Hardware]:
    """With the default model, and a folder for control groups; what it loads is ended."""
    store = ModelStore(tmp_path / "store", Path(os.environ["LLMASOS_MODELS"]))
    store.pull(MODEL, lambda _progress: None)
    (tmp_path / "cgroup").mkdir()
    memory = ArenaMemory(ARENA)
    hardware = Hardware(
        models={MODEL: ModelConfig(MODEL, context=512, sequences=4)},
        store=store,
        room=ROOM,
        memory=memory,
        cores=1,
        programs=lambda _task: pytest.fail("no task"),
        deliver=lambda *_: None,
        cgroups=Cgroups(tmp_path / "cgroup"),
    )
    yield hardware
    for worker in hardware.workers.values():
        worker.stop()
        worker.join()
    memory.close()


def test_a_worker_is_limited_to_what_the_ledger_charges(hardware: Hardware, tmp_path: Path) -> None:
    """And to the arena, which it may fill alone, and a margin."""
    worker = hardware.load(MODEL)
    assert isinstance(worker, WorkerHost)
    group = tmp_path / "cgroup" / f"worker-{MODEL}-{worker.process.pid}"
    charged = sum(region.bytes for region in hardware.footprint(MODEL))
    assert int((group / "memory.max").read_text()) == charged + ARENA + LIMIT_MARGIN_BYTES
    assert int((group / "cgroup.procs").read_text()) == worker.process.pid


def test_settings_count_from_the_next_question(hardware: Hardware) -> None:
    """Those of a model that is named, the defaults for one that is not any more, and the room for a pool."""
    before = hardware.limits(MODEL)
    assert before is not None
    hardware.configure({MODEL: ModelConfig(MODEL, context=1024, sequences=2, pin=True)}, ROOM)
    after = hardware.limits(MODEL)
    assert after is not None
    assert (before.context, before.sequences, before.pinned) == (512, 4, False)
    assert (after.context, after.sequences, after.pinned) == (1024, 2, True)
    hardware.configure({}, Bytes(ROOM // 2))
    default = hardware.limits(MODEL)
    assert default is not None
    assert (default.context, default.sequences, default.pinned) == (4096, 16, False)
    assert default.cells < after.cells
