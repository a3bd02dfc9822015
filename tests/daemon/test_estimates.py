"""Tests of estimates: what loads and dry runs teach is kept with the model, and what they can't is said."""

import os
from pathlib import Path

import pytest

from llmasos_edge.daemon.estimates import KEPT, Estimates, dry_run
from llmasos_edge.daemon.footprint import Shape
from llmasos_edge.errors import StoreError
from llmasos_edge.kernel.memory.budget import Region
from llmasos_edge.kernel.units import Bytes
from llmasos_edge.services.store import MemoryNotes, ModelStore, StoredModel

MODEL = "smollm2-135m"
MIB = 1 << 20
SHAPE = Shape("q8_0", cells=256, sequences=1, exact=False)
REGIONS = (Region(f"{MODEL}.kv", "kv", Bytes(60 * MIB)), Region(f"{MODEL}.runtime", "runtime", Bytes(40 * MIB)))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path, Path(os.environ["LLMASOS_MODELS"]))
    store.pull(MODEL, lambda _progress: None)
    return store


@pytest.fixture
def estimates(store: ModelStore) -> Estimates:
    """What it writes is written at once."""
    return Estimates(store, lambda work: work())


def kept(store: ModelStore) -> MemoryNotes:
    return stored(store).memory


def stored(store: ModelStore) -> StoredModel:
    model = store.find(MODEL)
    assert model is not None
    return model


def test_a_real_dry_run_is_kept(store: ModelStore, estimates: Estimates) -> None:
    """It is wanted once, of each shape; its result is there for the next start."""
    assert estimates.wants(stored(store), SHAPE)
    estimates.start(stored(store), SHAPE)
    assert not estimates.wants(stored(store), SHAPE)
    sizes = dry_run(stored(store).path, SHAPE)
    estimates.dry(MODEL, SHAPE, sizes)
    assert sizes["compute"] > MIB
    assert kept(store).dry_runs == {SHAPE.key: sizes}
    again = Estimates(store, lambda work: work())
    assert not again.wants(stored(store), SHAPE)
    assert again.notes(MODEL) == kept(store)


def test_the_last_dry_runs_are_kept(store: ModelStore, estimates: Estimates) -> None:
    """A pool that changes its size all the time does not fill the disk."""
    for cells in range(KEPT + 3):
        estimates.dry(MODEL, Shape("q8_0", cells, 1, exact=False), {"compute": 1, "output": 1})
    assert len(kept(store).dry_runs) == KEPT
    assert Shape("q8_0", KEPT + 2, 1, exact=False).key in kept(store).dry_runs


def test_a_dry_run_that_dies_is_an_error(tmp_path: Path) -> None:
    """The formula serves then."""
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(StoreError, match="bad.gguf: its buffers are estimated without a dry run"):
        dry_run(tmp_path / "bad.gguf", SHAPE)


def test_the_first_load_is_compared_with_its_most_bytes(store: ModelStore, estimates: Estimates) -> None:
    """Its charge is kept with the peak of what was measured; later loads, charged otherwise, change nothing of it."""
    estimates.loaded(MODEL, {"runtime": 33 * MIB}, REGIONS)
    for taken, untouched in ((70, 15), (88, 2), (80, 2)):
        estimates.live(MODEL, REGIONS, Bytes(taken * MIB), Bytes(untouched * MIB))
    assert kept(store).first == {"charged": 100 * MIB, "measured": 90 * MIB}
    assert kept(store).runtime == {"0.3.36": 33 * MIB}
    corrected = (REGIONS[0], Region(f"{MODEL}.runtime", "runtime", Bytes(39 * MIB)))
    estimates.loaded(MODEL, {"runtime": 33 * MIB}, corrected)
    estimates.live(MODEL, corrected, Bytes(95 * MIB), Bytes(0))
    assert kept(store).first == {"charged": 100 * MIB, "measured": 90 * MIB}


def test_what_a_charge_was_short_of_is_added(store: ModelStore, estimates: Estimates) -> None:
    """Once, and not what it was not short of."""
    estimates.live(MODEL, REGIONS, Bytes(99 * MIB), Bytes(9 * MIB))
    assert kept(store).excess == 0
    estimates.live(MODEL, REGIONS, Bytes(103 * MIB), Bytes(0))
    assert kept(store).excess == 3 * MIB


def test_what_is_known_already_is_not_written_again(store: ModelStore) -> None:
    """A load that measures the same touches no disk."""
    written: list[object] = []
    estimates = Estimates(store, lambda work: written.append(work()))
    for runtime in (33 * MIB, 33 * MIB + 4096):
        estimates.loaded(MODEL, {"runtime": runtime}, REGIONS)
    assert len(written) == 1


def test_notes_are_a_files(store: ModelStore, estimates: Estimates, tmp_path: Path) -> None:
    """Another file under the name knows nothing of the one before it."""
    estimates.repack_failed(MODEL)
    before = stored(store)
    store.remove(MODEL)
    assert estimates.notes(MODEL) == MemoryNotes()
    (tmp_path / "other.gguf").write_bytes(b"GGUF" + bytes(64))
    store.add(tmp_path / "other.gguf", MODEL)
    store.note_memory(before, MemoryNotes(excess=1))
    assert estimates.notes(MODEL) == kept(store) == MemoryNotes()
