"""The loader: charges the ledger, loads models and drops them, and says what is to become of the models' residency."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Final

from llmasos_edge.errors import BadRequest, NoMemory, Panic
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.admission import never_fits
from llmasos_edge.kernel.memory.budget import Ledger, Region
from llmasos_edge.kernel.memory.pressure import Level, Pressure
from llmasos_edge.kernel.memory.replacement import Policy, Replacement, Resident, cost
from llmasos_edge.kernel.memory.residency import Claimant, Occupant, Plan, plan
from llmasos_edge.kernel.processor import Phase, Processor
from llmasos_edge.kernel.task import State
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId, Priority, Tokens

OUTGROWN: Final = 32 << 20  # bytes beyond what a worker was charged when it was loaded


class Loader:
    """`replacement` and `pressure` may be set at any moment on the kernel's thread.

    Under pressure no pool grows; from DROP on nothing is loaded.
    """

    def __init__(self, machine: hal.Machine, ledger: Ledger, trace: Trace, replacement: Policy = cost) -> None:
        self.machine: Final = machine
        self.replacement = replacement
        self.pressure = Pressure()
        self.ledger: Final = ledger
        self._trace = trace
        self._processors: dict[ModelId, Processor] = {}
        self._fixed = ledger.charged  # the daemon and the arena: what no model can ever have
        self._ending: dict[ModelId, tuple[Region, ...]] = {}  # of workers that were told to end, until they are gone
        self._rung = 0  # places given on the clock's ring
        self.next_plan: Milliseconds | None = None  # when residency may have to change though nothing happens

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
        needed, room = (
            sum(region.bytes for region in regions),
            self.ledger.budget - self._fixed - self._pinned(processor),
        )
        if needed <= room:
            return
        alternatives = self.machine.alternatives(processor.model, Bytes(room))
        raise never_fits(processor.model, Bytes(needed), self.ledger.budget, Bytes(room), alternatives)

    def _pinned(self, beside: Processor) -> int:
        """Bytes of the other models that are never dropped, loaded or still to be."""
        others = (each for each in self.processors() if each.limits.pinned and each is not beside)
        return sum(self._takes(each) for each in others)

    def _takes(self, processor: Processor) -> int:
        """Bytes that it is charged, or will be."""
        return processor.bytes or self._needed(processor)

    def pin(self, processor: Processor, pinned: bool, now: Milliseconds) -> None:
        """Until the settings are read again. Raises NoMemory if what tasks want would never fit beside it."""
        before, room = processor.limits, self.ledger.budget - self._fixed
        processor.limits = replace(before, pinned=pinned)
        for each in self.processors():
            needed = self._takes(each) + self._pinned(each)
            if needed > room and (each is processor or each.live) and pinned:
                processor.limits = before
                why = f"{each.model} and the pinned models need {needed >> 20} MiB, the budget leaves {room >> 20} MiB"
                raise NoMemory(f"{processor.model} can't be pinned: {why}", details={"needed": needed, "budget": room})
        processor.wanted = pinned and processor.phase is Phase.UNLOADED
        self._trace.record(now, "model.pinned" if pinned else "model.unpinned", model=processor.model)

    # ---- who is resident

    def plan(self, bound: Milliseconds, now: Milliseconds) -> Plan:
        """What is to be loaded, dropped and drained now, for models that are wanted and not loaded."""
        absent = [each for each in self.processors() if each.phase is Phase.UNLOADED and (each.busy or each.wanted)]
        found = Plan()
        if absent and self.pressure.level < Level.DROP:
            claimants = [self._claimant(each, now) for each in absent]
            present = (each for each in self.processors() if each.phase is not Phase.UNLOADED)
            occupants = [_occupant(each, now) for each in present if not each.limits.pinned]
            found = plan(claimants, occupants, self._unclaimed, self.replacement, bound, now)
        self.next_plan = found.again_at
        return found

    @property
    def free(self) -> Bytes:
        """What anybody may have now."""
        return Bytes(min(self.ledger.free, self._unclaimed))

    @property
    def _unclaimed(self) -> Bytes:
        """What is free, or will be when those who were told to end are gone, and no load waits for."""
        ending = sum(region.bytes for regions in self._ending.values() for region in regions)
        return Bytes(self.ledger.free + ending - sum(each.awaits or 0 for each in self.processors()))

    def drain(self, found: Plan, now: Milliseconds) -> bool:
        """Who has begun in a model that is drained goes on, all others wait outside. True: that has emptied one."""
        emptied = False
        for processor in self.processors():
            draining, processor.draining = processor.draining, processor.model in found.drained
            if processor.draining and not draining:
                self._trace.record(now, "model.draining", model=processor.model, by=found.drained_for)
            for task in tuple(processor.ready) if processor.draining else ():
                if not task.generated:
                    processor.ready.remove(task)
                    task.move(State.BLOCKED, now, "model")
                    processor.newcomers.wait(task)
                    emptied |= processor.empty
        return emptied

    def shortage(self) -> int:
        """Bytes that the most urgent model that waits for memory lacks; 0 or less: none does."""
        absent = [each for each in self.processors() if each.phase is Phase.UNLOADED and each.busy]
        wanted = max(absent, key=lambda each: (each.urgency, -(each.waiting_since or 0)), default=None)
        return self._needed(wanted) - self._unclaimed if wanted is not None else 0

    def can_resize(self, processor: Processor, cells: Tokens) -> bool:
        """The budget has what that takes more."""
        regions = self.machine.footprint(processor.model, cells)
        return not self.pressure.level and sum(region.bytes for region in regions) - processor.bytes <= self.free

    def begin_resize(self, processor: Processor, cells: Tokens) -> None:
        """What is needed more is charged at once, what is needed less comes free when it is done."""
        processor.resizing = cells
        if cells > processor.limits.cells:
            self._recharge(processor, cells)

    def _resized(self, event: hal.Resized, now: Milliseconds) -> None:
        processor = self._processors[event.model]
        if processor.resizing is None:
            return  # it was dropped meanwhile
        if event.cells < processor.limits.cells:
            self._recharge(processor, event.cells)
        processor.limits, processor.resizing = replace(processor.limits, cells=event.cells), None
        self._trace.record(now, "pool.resized", model=event.model, cells=event.cells, ms=round(event.ms, 1))

    def _recharge(self, processor: Processor, cells: Tokens) -> None:
        regions = self.machine.footprint(processor.model, cells)
        self.ledger.release(*processor.regions)
        if not self.ledger.charge(*regions):
            raise Panic(f"Loader._recharge: {cells} cells for {processor.model} are not free")
        processor.regions = regions

    def room(self, processor: Processor, now: Milliseconds) -> Replacement | None:
        """The idle models to drop so that it can be loaded at once, whoever waits; None: there is no room now."""
        return self.replacement(self._needed(processor), self._unclaimed, self._idle(now))

    def idle_victim(self, now: Milliseconds) -> Processor | None:
        """The idle model that is the first to go; None: there is none."""
        free, idle = self.ledger.free, self._idle(now)
        found = self.replacement(Bytes(free + 1), free, idle)
        if found is None:
            return None
        self.spare(found.spared)
        return self._processors[found.victims[0]]

    def _idle(self, now: Milliseconds) -> list[Resident]:
        """Models that can be dropped at once."""
        present = (each for each in self.processors() if each.phase is Phase.LOADED)
        return [_resident(each, now) for each in present if not (each.busy or each.saving or each.limits.pinned)]

    def spare(self, models: Collection[ModelId]) -> None:
        """The clock's hand has passed over them, in this order."""
        for model in models:
            self._processors[model].referenced = False
            self._to_the_back(self._processors[model])

    def _to_the_back(self, processor: Processor) -> None:
        self._rung += 1
        processor.ring = self._rung

    def _claimant(self, processor: Processor, now: Milliseconds) -> Claimant:
        priority = processor.urgency if processor.busy else Priority.BATCH
        since = now if processor.waiting_since is None else processor.waiting_since
        return Claimant(processor.model, self._needed(processor), priority, since)

    # ---- loading and dropping

    def load(self, processor: Processor, now: Milliseconds) -> None:
        """Load it into the room that nobody has or waits for: `begin` does so once it has been given back."""
        limits, needed = self.machine.limits(processor.model), self._needed(processor)
        if limits is not None:
            processor.configure(replace(limits, pinned=processor.limits.pinned))
        if needed > self._unclaimed:
            raise Panic(f"Loader.load: {needed} bytes for {processor.model} are not free")
        processor.awaits, processor.phase = needed, Phase.LOADING
        processor.grown, processor.outgrown = Bytes(0), False
        processor.load_began, processor.progress, processor.has_served = now, 0.0, False
        self._trace.record(now, "model.loading", model=processor.model)

    def begin(self, processor: Processor, now: Milliseconds) -> None:
        """Start its worker, if that can be now. Raises EngineFailed if none can be started."""
        if processor.awaits is None or processor.model in self._ending:
            return
        regions = self.machine.footprint(processor.model)
        if self.ledger.charge(*regions):
            processor.regions, processor.awaits = regions, None
            processor.engine = self.machine.load(processor.model)
            processor.expect_by = Milliseconds(now + self.machine.load_timeout(processor.model))
        elif not self._ending:
            self._forget_worker(processor)  # more is known of somebody's size than before: it claims its place anew

    def _needed(self, processor: Processor) -> Bytes:
        return Bytes(sum(region.bytes for region in self.machine.footprint(processor.model)))

    def heard(self, event: hal.Loading | hal.Loaded | hal.Measured | hal.Resized, now: Milliseconds) -> None:
        match event:
            case hal.Loading():
                self._loading(event, now)
            case hal.Loaded():
                self._loaded(event, now)
            case hal.Measured():
                self._measured(event, now)
            case hal.Resized():
                self._resized(event, now)

    def _loading(self, event: hal.Loading, now: Milliseconds) -> None:
        processor = self._processors[event.model]
        if processor.phase is Phase.LOADING:
            processor.progress = event.fraction
            self._trace.tell(now, "model.loading", model=processor.model, progress=event.fraction)

    def _loaded(self, event: hal.Loaded, now: Milliseconds) -> None:
        processor = self._processors[event.model]
        if processor.phase is not Phase.LOADING or processor.engine is None:
            return  # it was dropped meanwhile
        processor.phase, processor.details, processor.expect_by = Phase.LOADED, event.details, None
        processor.used_at, processor.load_failed, processor.wanted = now, False, False
        processor.loaded_at, processor.load_ms, processor.progress = now, float(now - processor.load_began), None
        self._to_the_back(processor)
        step, prefill = event.details.get("step_ms"), event.details.get("prefill_ms")
        if isinstance(step, float) and isinstance(prefill, float):
            rates = processor.speeds.use(self.machine.cores)
            rates.step_ms, rates.prefill_ms = step, prefill
        self._trace.record(now, "model.loaded", model=processor.model, **event.details)

    def _measured(self, event: hal.Measured, now: Milliseconds) -> None:
        """A worker takes so much. What it was not charged for is charged now, if there is room.

        One that is far beyond its charge is killed: its tasks are resumed in another one.
        """
        processor = self._processors[event.model]
        charged = sum(region.bytes for region in processor.regions)
        beyond = Bytes(event.bytes - charged)
        if processor.phase is not Phase.LOADED or beyond <= 0:
            return
        if processor.grown + beyond > OUTGROWN:
            processor.outgrown = True
            self._trace.record(now, "worker.outgrown", model=event.model, measured=event.bytes, charged=charged)
            processor.worker.kill()
            return
        larger = replace(processor.regions[-1], bytes=Bytes(processor.regions[-1].bytes + beyond))
        if self.ledger.adjust(larger):
            processor.regions, processor.grown = (*processor.regions[:-1], larger), Bytes(processor.grown + beyond)

    def drop(self, processor: Processor, now: Milliseconds) -> None:
        """Raises BadRequest if tasks want it: such a model is dropped only for another one, and when it is empty."""
        if processor.busy and processor.phase is Phase.LOADING:
            raise BadRequest(f"{processor.model} is being loaded for tasks: kill them first (`llmasos ps`)")
        if processor.busy:
            raise BadRequest(f"{processor.model} is busy: wait for its tasks, or kill them first (`llmasos ps`)")
        self._end(processor, now, None)

    def displace(self, processor: Processor, by: ModelId, now: Milliseconds) -> None:
        """Drop it for another one; its tasks, if it has any, wait for it to come back."""
        if not processor.empty:
            raise Panic(f"Loader.displace: {processor.model} has tasks in it")
        self._end(processor, now, by)

    def _end(self, processor: Processor, now: Milliseconds, by: ModelId | None) -> None:
        if processor.phase is not Phase.UNLOADED:
            self.end(processor)
            self._trace.record(now, "model.dropped", model=processor.model, by=by)

    def end(self, processor: Processor) -> None:
        """Its worker is told to end. Until it is gone its bytes stay charged: nobody else may have them yet."""
        if processor.engine is not None:
            self._ending[processor.model] = processor.regions
            processor.engine.stop()
        self._forget_worker(processor)

    def gone(self, model: ModelId) -> bool:
        """The model's worker is. True: it was told to end, and what it had is free now."""
        regions = self._ending.pop(model, None)
        self.ledger.release(*regions or ())
        return regions is not None

    def unloaded(self, processor: Processor) -> None:
        """The worker is gone by itself: its bytes go back to the ledger."""
        self.ledger.release(*processor.regions)
        self._forget_worker(processor)

    def _forget_worker(self, processor: Processor) -> None:
        processor.regions, processor.phase, processor.engine = (), Phase.UNLOADED, None
        processor.quantum = processor.expect_by = processor.prepare_by = None
        processor.grants.clear()
        processor.interrupted = processor.urgent = processor.draining = processor.due = processor.leaving = False
        processor.progress = processor.resizing = None
        processor.awaits = None

    def refresh(self, removed: Collection[ModelId] = ()) -> None:
        """The machine's settings have changed. Who is loaded keeps what it has until it is idle; `removed` go then."""
        for processor in self.processors():
            limits = self.machine.limits(processor.model)
            if limits is None:
                continue  # its file is gone
            if processor.phase is Phase.UNLOADED:
                processor.configure(limits)
            else:
                cells = processor.resizing or processor.limits.cells
                processor.limits = replace(processor.limits, pinned=limits.pinned)
                regions = self.machine.footprint(processor.model, processor.limits.cells)
                same = limits == replace(processor.limits, cells=limits.cells)
                same &= bool(limits.most) or limits.cells == cells
                processor.stale = not same or _settled(regions) != _settled(processor.regions)
                processor.stale |= processor.model in removed
            processor.wanted &= limits.pinned

    def forget(self, model: ModelId) -> None:
        """The model is to be removed from the store. Raises BadRequest if it is loaded, or wanted by a task."""
        processor = self._processors.get(model)
        if processor is not None and processor.phase is not Phase.UNLOADED:
            raise BadRequest(f"{model} is loaded: `llmasos model drop {model}` first")
        if processor is not None and processor.live:
            raise BadRequest(f"{processor.live} tasks want {model}: wait for them, or kill them first (`llmasos ps`)")
        self._processors.pop(model, None)


def _resident(processor: Processor, now: Milliseconds) -> Resident:
    return Resident(
        model=processor.model,
        bytes=Bytes(processor.bytes + (processor.awaits or 0)),
        used_at=processor.used_at,
        load_ms=processor.load_ms,
        uses=processor.uses.count(now),
        ring=processor.ring,
        referenced=processor.referenced,
        returns=processor.returns,
    )


def _occupant(processor: Processor, now: Milliseconds) -> Occupant:
    return Occupant(
        resident=_resident(processor, now),
        priority=processor.urgency,
        loaded_at=processor.loaded_at if processor.phase is Phase.LOADED else None,
        busy=processor.busy or processor.saving > 0,
        empty=processor.empty,
        draining=processor.draining,
        served=processor.has_served,
        due=processor.due,
    )


def _settled(regions: Collection[Region]) -> set[Region]:
    """Those that follow from the settings; the others are also corrected by what is measured."""
    return {region for region in regions if region.kind in ("weights", "kv")}
