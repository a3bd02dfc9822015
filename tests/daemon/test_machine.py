"""Tests of the machine that the kernel sees: what a worker may take of it."""

import os
import queue
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from llmasos_edge.config.node import ModelConfig
from llmasos_edge.daemon.estimates import Estimates
from llmasos_edge.daemon.footprint import measured, types_repacked
from llmasos_edge.daemon.footprint import told as worker_told
from llmasos_edge.daemon.machine import LIMIT_MARGIN_BYTES, POOL_AUTO, POOL_STEP, Hardware
from llmasos_edge.engine.host import WorkerHost
from llmasos_edge.kernel.hal import Loaded, Loading
from llmasos_edge.kernel.units import Bytes, ModelId
from llmasos_edge.services.arena_memory import ArenaMemory
from llmasos_edge.services.cgroup import Cgroups
from llmasos_edge.services.store import ModelStore
from tests.quantized import quantized

MODEL, SMALL = ModelId("smollm2-135m"), ModelId("smollm2-135m-q4_0")
MODELS = Path(os.environ["LLMASOS_MODELS"])
ARENA = Bytes(8 << 20)
ROOM = Bytes(512 << 20)
MIB = 1 << 20


@pytest.fixture
def told() -> queue.SimpleQueue[object]:
    """What workers say."""
    return queue.SimpleQueue()


@pytest.fixture
def hardware(tmp_path: Path, told: queue.SimpleQueue[object]) -> Iterator[Hardware]:
    """With the default model as it is and in Q4_0, and a folder for control groups; what it loads is ended."""
    store = ModelStore(tmp_path / "store", MODELS)
    store.pull(MODEL, lambda _progress: None)
    store.add(quantized(MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf", Path(".state/cache/models"), "Q4_0"), SMALL)
    (tmp_path / "cgroup").mkdir()
    memory = ArenaMemory(ARENA)
    hardware = Hardware(
        models={MODEL: ModelConfig(MODEL, context=512, sequences=4)},
        estimates=Estimates(store, lambda work: work()),
        room=ROOM,
        memory=memory,
        cores=1,
        programs=lambda _task: pytest.fail("no task"),
        deliver=lambda _model, event: told.put(event),
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


def needed(hardware: Hardware, model: ModelId) -> int:
    return sum(region.bytes for region in hardware.footprint(model))


def regions(hardware: Hardware, model: ModelId) -> set[str]:
    return {region.name.removeprefix(f"{model}.") for region in hardware.footprint(model)}


def test_weights_are_repacked_where_the_share_has_room(hardware: Hardware) -> None:
    """Not of a type without another layout, not for an exact model, and not after a worker has died of it."""
    config = ModelConfig(SMALL, context=512, kv_pool=512)
    assert types_repacked(), "this processor has no other layout of Q4_0 weights: no board of ours is like that"
    hardware.configure({SMALL: config}, ROOM)
    assert "repacked" in regions(hardware, SMALL)
    assert "repacked" not in regions(hardware, MODEL)
    whole = needed(hardware, SMALL)
    hardware.configure({SMALL: config}, Bytes(whole - 1))
    assert "repacked" not in regions(hardware, SMALL)
    assert needed(hardware, SMALL) < whole
    hardware.configure({SMALL: replace(config, exact=True)}, ROOM)
    assert "repacked" not in regions(hardware, SMALL)
    hardware.configure({SMALL: config}, ROOM)
    hardware.estimates.repack_failed(SMALL)
    assert "repacked" not in regions(hardware, SMALL)


def test_a_load_is_what_was_charged(hardware: Hardware, told: queue.SimpleQueue[object]) -> None:
    """Repacked weights to the page, the process within a fifth; no region takes more than its charge."""
    hardware.configure({SMALL: ModelConfig(SMALL, context=512, kv_pool=512, sequences=4)}, ROOM)
    charged = hardware.footprint(SMALL)
    hardware.load(SMALL)
    while isinstance(loaded := told.get(timeout=60), Loading):
        pass  # it is told only of a load that takes long
    assert isinstance(loaded, Loaded)
    memory = hardware.memory(SMALL)
    assert memory is not None
    taken = measured(charged, worker_told(loaded.details), memory)
    sizes = {region.name: region.bytes for region in charged}
    assert all(taken[name] <= sizes[name] for name in sizes), (taken, sizes)
    assert taken[f"{SMALL}.repacked"] == pytest.approx(sizes[f"{SMALL}.repacked"], abs=1 << 14)
    assert taken[f"{SMALL}.runtime"] == pytest.approx(sizes[f"{SMALL}.runtime"], rel=0.2)


def test_a_pool_of_its_own_choice_leaves_no_room_unused(hardware: Hardware) -> None:
    """As many cells as its share has room for: one step more would be too many."""
    hardware.configure({MODEL: ModelConfig(MODEL, context=512), "other": ModelConfig("other")}, Bytes(400 * MIB))
    limits = hardware.limits(MODEL)
    assert limits is not None
    assert 512 < limits.cells < POOL_AUTO
    assert needed(hardware, MODEL) <= 200 * MIB < needed(hardware, MODEL) + POOL_STEP * limits.cell_bytes * 1.4


def test_what_would_fit_is_told(hardware: Hardware) -> None:
    """Settings that are smaller, and the other quantization of it; each would need what it says, and that is true."""
    hardware.configure({MODEL: ModelConfig(MODEL, kv="f16", context=8192)}, ROOM)
    room = Bytes(needed(hardware, MODEL) - 100 * MIB)
    found = hardware.alternatives(MODEL, room)
    assert [set(each.change) for each in found] == [{"context", "kv_pool"}, {"kv"}]
    assert all(each.needed <= room for each in found)
    settings = cast("dict[str, Any]", found[0].change)
    hardware.configure({MODEL: ModelConfig(MODEL, kv="f16", **settings)}, ROOM)
    assert needed(hardware, MODEL) == found[0].needed
    hardware.configure({MODEL: ModelConfig(MODEL, context=512, kv_pool=512)}, ROOM)
    room = Bytes(needed(hardware, MODEL) - MIB)
    assert any(each.change == {"model": SMALL} for each in hardware.alternatives(MODEL, room))
    assert hardware.alternatives(MODEL, Bytes(50 * MIB)) == ()
