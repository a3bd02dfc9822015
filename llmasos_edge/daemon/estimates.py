"""What is known of each model's memory: the store's notes, dry runs that add to them, and loads that correct them."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

import msgspec

from llmasos_edge.daemon.footprint import Shape, steady
from llmasos_edge.engine.version import VERSION
from llmasos_edge.errors import StoreError
from llmasos_edge.kernel.memory.budget import Region
from llmasos_edge.kernel.units import Bytes
from llmasos_edge.services.store import MemoryNotes, ModelStore, StoredModel

log = logging.getLogger(__name__)
DRY_RUN_S: Final = 60.0
KEPT: Final = 8  # dry runs of a model
NEWS: Final = 1 << 20  # bytes that a measurement must differ by to be written down again
Run = Callable[[Callable[[], object]], object]


class Estimates:
    """For the kernel's thread, but for `dry_run`. `run` does what takes a disk on another thread."""

    def __init__(self, store: ModelStore, run: Run) -> None:
        self.store: Final = store
        self._run = run
        self._notes: dict[tuple[str, str], MemoryNotes] = {}  # by name and sha256
        self._tried: set[tuple[str, str, str]] = set()
        self.revision = 0  # of all notes

    def notes(self, model: str) -> MemoryNotes:
        stored = self.store.find(model)
        if stored is None:
            return MemoryNotes()
        return self._notes.setdefault((model, stored.sha256), stored.memory)

    def wants(self, stored: StoredModel, shape: Shape) -> bool:
        """Whether there was no dry run of this shape, nor an attempt at one since the start."""
        tried = (stored.name, stored.sha256, shape.key) in self._tried
        return not tried and shape.key not in self.notes(stored.name).dry_runs

    def start(self, stored: StoredModel, shape: Shape) -> None:
        self._tried.add((stored.name, stored.sha256, shape.key))

    def dry(self, model: str, shape: Shape, sizes: Mapping[str, int]) -> None:
        """The dry run has told these."""
        runs = self.notes(model).dry_runs | {shape.key: dict(sizes)}
        self._note(model, dry_runs={key: runs[key] for key in list(runs)[-KEPT:]})

    def loaded(self, model: str, told: Mapping[str, int], regions: Collection[Region]) -> None:
        """A worker has loaded it: its process with the vocabulary is measured. The first load's charge is kept."""
        notes, runtime = self.notes(model), told.get("runtime", 0)
        changes: dict[str, object] = {}
        if abs(notes.runtime.get(VERSION, 0) - runtime) > NEWS:
            changes["runtime"] = {VERSION: runtime}
        if notes.first is None:
            changes["first"] = {"charged": steady(regions), "measured": 0}
        if changes:
            self._note(model, **changes)

    def live(self, model: str, regions: Collection[Region], taken: Bytes, untouched: Bytes) -> None:
        """A worker takes so much now. What all its charges are short of is added to the next ones.

        `untouched`: of buffers that it has allocated: the first load is compared with all that it may take at once.
        """
        notes, changes = self.notes(model), dict[str, object]()
        beyond = taken - sum(region.bytes for region in regions)
        if beyond > 0:
            changes["excess"] = notes.excess + beyond
        first = notes.first
        whole = taken + untouched
        if first is not None and first["charged"] == steady(regions) and whole > first["measured"] + NEWS:
            changes["first"] = first | {"measured": whole}
        if changes:
            self._note(model, **changes)

    def repack_failed(self, model: str) -> None:
        log.warning("%s: its worker died with repacked weights: they stay as they are from now on", model)
        self._note(model, repack_failed=True)

    def _note(self, model: str, **changes: object) -> None:
        stored = self.store.find(model)
        if stored is None:
            return
        notes = msgspec.structs.replace(self.notes(model), **changes)
        self._notes[model, stored.sha256] = notes
        self.revision += 1
        self._run(lambda: self.store.note_memory(stored, notes))


def dry_run(path: Path, shape: Shape) -> dict[str, int]:
    """Takes a fraction of a second, and more on a slow board. Raises StoreError: the formula has to do."""
    arguments = (str(path), shape.kv, str(shape.cells), str(shape.sequences))
    command = [sys.executable, "-m", "llmasos_edge.engine.dryrun", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DRY_RUN_S)
        return msgspec.convert(json.loads(done.stdout), dict[str, int])
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise StoreError(f"{path.name}: its buffers are estimated without a dry run: {error}") from error
