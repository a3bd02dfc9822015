"""Leases: who holds the cores, and until when. Cores are a ledger: the threads of all leases never exceed them."""

from dataclasses import replace
from typing import Final

from llmasos_edge.kernel.loader import Loader
from llmasos_edge.kernel.processor import Phase, Processor
from llmasos_edge.kernel.scheduling.batch import Targets, compose
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Milliseconds

WORTH_ABORTING_MS: Final = 30.0  # a step shorter than this is waited for


class Leases:
    """Gives each model with running tasks its quantum, and renews it before it ends."""

    def __init__(self, loader: Loader, trace: Trace) -> None:
        self._loader, self._trace = loader, trace

    def renew(self, targets: Targets, now: Milliseconds) -> None:
        """Whoever waits longest comes first."""
        for processor in sorted(self._loader.processors(), key=lambda each: each.lease_until):
            if processor.phase is Phase.LOADED:
                self._renew(processor, targets, now)

    def _renew(self, processor: Processor, targets: Targets, now: Milliseconds) -> None:
        """At most one lease a core, and all leases share the cores."""
        active = [each for each in self._loader.processors() if each.quantum is not None]
        waiting = [each for each in self._loader.processors() if each.quantum is None and each.seated]
        cores = self._loader.machine.cores
        threads = max(1, cores // max(1, len({*active, *waiting})))
        current = processor.quantum
        seated = processor.seated
        if current is None and (not seated or len(active) >= cores):
            return
        crowded = len(active) + len(waiting) > cores
        if current is not None:
            ending = bool(seated) and processor.lease_ends_soon(now) and not crowded
            if not (ending or processor.changed or current.threads != threads):
                return
        if current is not None and crowded:  # another model waits for the core: the lease may change, not grow
            targets = replace(targets, quantum_ms=Milliseconds(max(0, processor.lease_until - now)))
        self._grant(processor, targets, threads, now)

    def _grant(self, processor: Processor, targets: Targets, threads: int, now: Milliseconds) -> None:
        processor.numbers += 1
        tasks = processor.seated
        quantum = compose(processor.numbers, tasks, processor.cells_free, processor.rates, targets, threads)
        processor.worker.grant(quantum)
        if processor.urgent:
            self._interrupt(processor, now)
        processor.urgent = False
        processor.quantum = quantum if tasks else None
        processor.lease_until, processor.changed = Milliseconds(now + quantum.time_ms), False
        if processor.expect_by is None:  # else only a report may put it off: grants come also while the worker hangs
            processor.expect(now)

    def _interrupt(self, processor: Processor, now: Milliseconds) -> None:
        """Abort the step in hand if it is a long one, and never twice before a step has completed.

        After the new lease is sent: the boundary that the abort makes must find it.
        """
        if processor.quantum is None or processor.interrupted:
            return
        prefill = sum(slot.prefill for slot in processor.quantum.slots if slot.prefill > 1)
        if processor.rates.expected_ms(1, min(prefill, processor.quantum.chunk)) >= WORTH_ABORTING_MS:
            processor.interrupted = True
            processor.worker.interrupt()
            self._trace.record(now, "step.aborted", model=processor.model)
