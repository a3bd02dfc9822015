"""The meter: dry runs before a model is loaded, what its load tells, and what the system reports of it from then on."""

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from llmasos_edge.daemon.estimates import dry_run
from llmasos_edge.daemon.footprint import measured, repacked, told
from llmasos_edge.daemon.machine import Hardware
from llmasos_edge.daemon.models import Errands
from llmasos_edge.engine.protocol import Answer, Command
from llmasos_edge.engine.sandbox import FULL
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.loader import Loader
from llmasos_edge.kernel.memory.budget import Region
from llmasos_edge.kernel.processor import Phase
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId
from llmasos_edge.services.monitor import WorkerMemory, worker_memory

log = logging.getLogger(__name__)
EVERY_MS: Final = 10_000


class Meter:
    """For the kernel's thread, but for `poll`. What it measures reaches the kernel through `handle`."""

    def __init__(
        self,
        hardware: Hardware,
        loader: Loader,
        errands: Errands,
        post: Callable[[Callable[[], object]], None],
        handle: Callable[[ModelId, Answer | Command], None],
    ) -> None:
        self._hardware, self._loader, self._errands, self._post, self._handle = hardware, loader, errands, post, handle
        self._at = Milliseconds(0)

    def estimate(self, go_on: Callable[[], None]) -> None:
        """A dry run of each model that had none yet, one after another.

        Where it would take the room that a model needs, a formula serves instead.
        """
        wanted = next(self._hardware.unestimated(), None)
        if wanted is None or not self._room_for(wanted[2]):
            go_on()
            return
        model, shape, region = wanted
        self._loader.ledger.charge(region)
        self._hardware.estimates.start(model, shape)

        def over(sizes: object) -> None:
            self._loader.ledger.release(region)
            if isinstance(sizes, dict):
                self._hardware.estimates.dry(model.name, shape, sizes)
            else:
                log.warning("no dry run of %s: %s", model.name, sizes)
            self.estimate(go_on)

        self._errands.run(partial(dry_run, model.path, shape), over, over)

    def _room_for(self, region: Region) -> bool:
        """Beside the largest model that may be loaded any moment; and not while another dry run has the region."""
        ledger, unloaded = self._loader.ledger, (p for p in self._loader.processors() if p.phase is Phase.UNLOADED)
        needs = (sum(it.bytes for it in self._hardware.footprint(each.model)) for each in unloaded)
        alone = all(each.name != region.name for each in ledger.regions())
        return alone and self._loader.free - region.bytes >= max(needs, default=0)

    def learn(self, model: ModelId, event: hal.Event) -> None:
        """What a load tells of its worker, and of the memory that the model takes; before the kernel hears of it."""
        processor = self._loader.processor(model)
        if processor is None or processor.phase is not Phase.LOADING or not processor.regions:
            return
        if isinstance(event, hal.Loaded):
            _check_sandbox(event)
            self._hardware.estimates.loaded(model, told(event.details), processor.regions)
        elif isinstance(event, hal.Died) and repacked(processor.regions):
            self._hardware.estimates.repack_failed(model)

    def poll(self, now: Milliseconds) -> None:
        """On the main thread: every ten seconds all workers are measured."""
        if now - self._at < EVERY_MS:
            return
        self._at = now
        for model in tuple(self._hardware.workers):
            memory = self._hardware.memory(model)
            if memory is not None:
                self._post(partial(self._live, model, memory))

    def _live(self, model: ModelId, memory: WorkerMemory) -> None:
        processor = self._loader.processor(model)
        if processor is not None and processor.phase is Phase.LOADED:
            taken = Bytes(memory.weights + memory.private)
            buffers = measured(processor.regions, told(processor.details), memory)[f"{model}.compute"]
            untouched = Bytes(max(0, told(processor.details).get("buffers", 0) - buffers))
            self._hardware.estimates.live(model, processor.regions, taken, untouched)
            self._handle(model, hal.Measured(model, taken))

    def measured(self) -> Mapping[str, int]:
        """Bytes by region, as the budget counts them; read now, which takes some 4 ms a worker."""
        own = worker_memory(os.getpid())
        found = {"daemon": own.private if own else 0, "arena": self._hardware.arena.allocated()}
        for processor in self._loader.processors():
            memory = self._hardware.memory(processor.model)
            if memory is not None and processor.regions:
                found |= measured(processor.regions, told(processor.details), memory)
        return found


def _check_sandbox(loaded: hal.Loaded) -> None:
    sandbox = loaded.details.get("sandbox")
    if sandbox != FULL:
        log.warning(
            "the worker of %s has less of a sandbox than it could have, %s of %s: this kernel offers no more",
            *(loaded.model, sandbox, FULL),
        )
