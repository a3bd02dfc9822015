"""The loader: charges the ledger and loads a model, drops idle ones to make room; it decides what is resident."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Final

from llmasos_edge.errors import BadRequest, NoMemory, Panic
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.memory.budget import Ledger
from llmasos_edge.kernel.memory.residency import Resident, choose_victims
from llmasos_edge.kernel.processor import Phase, Processor
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId


class Loader:
    def __init__(self, machine: hal.Machine, ledger: Ledger, trace: Trace) -> None:
        self.machine: Final = machine
        self.ledger: Final = ledger
        self._trace = trace
        self._processors: dict[ModelId, Processor] = {}
        self._fixed = ledger.charged  # the daemon and the arena: what no model can ever have

    def processors(self) -> Iterator[Processor]:
        return iter(tuple(self._processors.values()))

    def processor(self, model: ModelId) -> Processor | None:
        """The model's processor; it is made at first use, and None if there is no such model."""
        if model not in self._processors:
            limits = self.machine.limits(model)
            if limits is None:
                return None
            self._processors[model] = Processor(model, limits)
        return self._processors[model]

    def check_fits(self, processor: Processor) -> None:
        """Raises NoMemory if the model can never be loaded: needed, budget, and what would fit."""
        if processor.phase is not Phase.UNLOADED:
            return
        regions = self.machine.footprint(processor.model)
        needed, room = sum(region.bytes for region in regions), self.ledger.budget - self._fixed - self._pinned()
        if needed <= room:
            return
        kv = sum(region.bytes for region in regions if region.kind == "kv")
        cells = (room - (needed - kv)) // max(1, processor.limits.cell_bytes)
        fits = f"a pool of {cells} cells would fit" if cells >= 256 else "a smaller quantization is needed"
        raise NoMemory(
            f"{processor.model} needs {needed >> 20} MiB, and the budget leaves {room >> 20} MiB for models: {fits}",
            details={
                "needed": needed,
                "budget": self.ledger.budget,
                "available": room,
                "would_fit_cells": max(0, cells),
            },
        )

    def _pinned(self) -> int:
        """Bytes of loaded models that are never dropped."""
        pinned = (each for each in self.processors() if each.limits.pinned)
        return sum(region.bytes for each in pinned for region in each.regions)

    def victims(self, processor: Processor) -> tuple[ModelId, ...] | None:
        """The idle models to drop so that the model can be loaded; None: there is no room now."""
        return choose_victims(self._needed(processor), self.ledger.free, self._droppable())

    def load(self, processor: Processor, now: Milliseconds) -> None:
        """Start loading into the room that is there. Raises EngineFailed if no worker can be started."""
        limits, regions = self.machine.limits(processor.model), self.machine.footprint(processor.model)
        if limits is not None:
            processor.configure(limits)
        if not self.ledger.charge(*regions):
            raise Panic(f"Loader.load: {self._needed(processor)} bytes for {processor.model} are not free")
        processor.regions, processor.phase = regions, Phase.LOADING
        processor.engine = self.machine.load(processor.model)
        processor.expect_by = Milliseconds(now + self.machine.load_timeout(processor.model))
        self._trace.record(now, "model.loading", model=processor.model)

    def _needed(self, processor: Processor) -> Bytes:
        return Bytes(sum(region.bytes for region in self.machine.footprint(processor.model)))

    def loaded(self, event: hal.Loaded, now: Milliseconds) -> None:
        processor = self._processors[event.model]
        if processor.phase is not Phase.LOADING:
            return  # it was dropped meanwhile
        processor.phase, processor.details, processor.expect_by = Phase.LOADED, event.details, None
        processor.used_at, processor.load_failed, processor.wanted = now, False, False
        step, prefill = event.details.get("step_ms"), event.details.get("prefill_ms")
        if isinstance(step, float) and isinstance(prefill, float):
            processor.rates.step_ms, processor.rates.prefill_ms = step, prefill
        self._trace.record(now, "model.loaded", model=processor.model, **event.details)

    def drop(self, processor: Processor, now: Milliseconds) -> None:
        """Raises BadRequest if the model is busy: a busy model is never dropped."""
        if processor.busy:
            raise BadRequest(f"{processor.model} is busy: wait for its tasks, or kill them first (`llmasos ps`)")
        if processor.engine is not None:
            processor.engine.stop()
            self.unloaded(processor, now)
            self._trace.record(now, "model.dropped", model=processor.model)

    def unloaded(self, processor: Processor, now: Milliseconds) -> None:
        """The worker is gone: its bytes go back to the ledger."""
        self.ledger.release(*processor.regions)
        processor.regions, processor.phase, processor.engine = (), Phase.UNLOADED, None
        processor.quantum = processor.expect_by = processor.prepare_by = None
        processor.interrupted = processor.urgent = False
        processor.used_at = now

    def refresh(self, removed: Collection[ModelId] = ()) -> None:
        """The machine's settings have changed. Who is loaded keeps what it has until it is idle; `removed` go then."""
        for processor in self.processors():
            limits = self.machine.limits(processor.model)
            if limits is None:
                continue  # its file is gone
            if processor.phase is Phase.UNLOADED:
                processor.configure(limits)
            else:
                processor.limits = replace(processor.limits, pinned=limits.pinned)
                changed = limits != processor.limits or self.machine.footprint(processor.model) != processor.regions
                processor.stale = changed or processor.model in removed
            processor.wanted &= limits.pinned

    def forget(self, model: ModelId) -> None:
        """The model is to be removed from the store. Raises BadRequest if it is loaded, or wanted by a task."""
        processor = self._processors.get(model)
        if processor is not None and processor.phase is not Phase.UNLOADED:
            raise BadRequest(f"{model} is loaded: `llmasos model drop {model}` first")
        if processor is not None and processor.live:
            raise BadRequest(f"{processor.live} tasks want {model}: wait for them, or kill them first (`llmasos ps`)")
        self._processors.pop(model, None)

    def _droppable(self) -> list[Resident]:
        return [
            Resident(each.model, Bytes(sum(region.bytes for region in each.regions)), each.used_at)
            for each in self.processors()
            if each.phase is Phase.LOADED and not (each.busy or each.saving or each.limits.pinned)
        ]
