"""Leases: who holds the cores, and until when. Cores are a ledger: the threads of all leases never exceed them.

A worker holds the cores of its old lease until it tells that it goes by the new one, or is idle: only then does
another model get them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from llmasos_edge.kernel.loader import Loader
from llmasos_edge.kernel.processor import Phase, Processor
from llmasos_edge.kernel.scheduling.batch import Targets, compose
from llmasos_edge.kernel.sharing import Sharing
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Milliseconds, Priority

WORTH_ABORTING_MS: Final = 30.0  # a step shorter than this is waited for
DENIED_MS: Final = 1_500  # then a model's turn has come, whatever class has the cores


class Leases:
    """Gives each model with running tasks its quantum, and renews it before it ends."""

    def __init__(self, loader: Loader, trace: Trace) -> None:
        self._loader, self._trace = loader, trace
        self._sharing = Sharing(loader.machine.cores, trace)
        self._denied: dict[Processor, Milliseconds] = {}  # who has work and no lease, and since when: who came first

    def renew(self, targets: Targets, now: Milliseconds) -> None:
        """Take cores away first, then give them."""
        loaded = [each for each in self._loader.processors() if each.phase is Phase.LOADED]
        working = [each for each in loaded if each.seated]
        waiting = [each for each in working if each.quantum is None]
        self._denied = {each: since for each, since in self._denied.items() if each in waiting}
        for processor in waiting:
            self._denied.setdefault(processor, now)
        rivals = self._rivals(working, now)
        for processor in loaded:
            if processor.quantum is not None and processor not in rivals:
                self._revoke(processor, targets, now)
        if not rivals:
            return
        places = self._sharing.places(rivals, targets.quantum_ms, now)
        chosen = sorted(rivals, key=lambda each: self._order(each, now))[:places]
        share, more = divmod(self._loader.machine.cores, places)
        wanted = {each: share + (number < more) for number, each in enumerate(chosen)}
        crowded = len(rivals) > places
        for processor in sorted(rivals, key=lambda each: wanted.get(each, 0) - each.grants.threads):
            self._renew(processor, wanted.get(processor, 0), targets, now, crowded=crowded)
        self._hurry(chosen, now)

    def _rivals(self, working: Sequence[Processor], now: Milliseconds) -> list[Processor]:
        """Who may compute: all, but while a task has had no token yet, no model whose tasks are all of a lower class;
        until that has been denied for long.
        """
        claims = [task.priority for each in working for task in each.seated if not task.generated]
        least = max(claims, default=Priority.BATCH)
        return [
            each for each in working if _urgency(each) >= least or self._overdue(each, now) or now < each.owed_until
        ]

    def _overdue(self, processor: Processor, now: Milliseconds) -> bool:
        return now - self._denied.get(processor, now) >= DENIED_MS

    def _order(self, processor: Processor, now: Milliseconds) -> tuple[bool, bool, int, int]:
        """Who has a lease keeps its place; then who was denied for long, the higher class, and who came first."""
        if processor.quantum is not None:
            return False, False, 0, -processor.lease_until
        return True, not self._overdue(processor, now), -_urgency(processor), list(self._denied).index(processor)

    def _renew(self, processor: Processor, wanted: int, targets: Targets, now: Milliseconds, *, crowded: bool) -> None:
        """`wanted` threads, or as many of them as are free; 0: another's turn comes when its lease ends."""
        current = processor.quantum
        if current is None:
            if wanted and (threads := min(wanted, self._free(processor))):
                lease = self._apart(targets.quantum_ms, now) if crowded else targets.quantum_ms
                self._grant(processor, replace(targets, quantum_ms=lease), threads, now)
            return
        threads = min(wanted or current.threads, self._free(processor))
        ending = processor.lease_ends_soon(now) and not crowded
        if ending or processor.changed or threads != current.threads:
            if crowded or not wanted:  # another model waits for the cores: the lease may change, not grow
                targets = replace(targets, quantum_ms=Milliseconds(max(0, processor.lease_until - now)))
            self._grant(processor, targets, threads, now)

    def _apart(self, quantum_ms: Milliseconds, now: Milliseconds) -> Milliseconds:
        """Shorter, if others' leases end when this one would: else the same ones would wait in each round."""
        others = [each.lease_until for each in self._loader.processors() if each.quantum is not None]
        apart = quantum_ms // (len(others) + 1)
        ends = (now + quantum_ms - number * apart for number in range(len(others) + 1))
        return Milliseconds(max(ends, key=lambda end: min((abs(end - other) for other in others), default=0)) - now)

    def _free(self, processor: Processor) -> int:
        """Cores that it may have: those that no other worker may be computing on."""
        return self._loader.machine.cores - sum(
            each.grants.threads for each in self._loader.processors() if each is not processor
        )

    def _grant(self, processor: Processor, targets: Targets, threads: int, now: Milliseconds) -> None:
        if processor.quantum is None:
            processor.owed_until = Milliseconds(now + targets.quantum_ms if self._overdue(processor, now) else now)
            self._denied.pop(processor)
        self._send(processor, processor.seated, targets, threads, now)

    def _revoke(self, processor: Processor, targets: Targets, now: Milliseconds) -> None:
        """With an empty lease: its tasks are gone, or those of a higher class come first."""
        self._send(processor, (), targets, max(1, processor.grants.threads), now)

    def _send(
        self, processor: Processor, tasks: Sequence[Task], targets: Targets, threads: int, now: Milliseconds
    ) -> None:
        processor.numbers += 1
        rates = processor.speeds.use(threads)
        quantum = compose(processor.numbers, tasks, processor.cells_free, rates, targets, threads)
        processor.worker.grant(quantum)
        if processor.urgent:
            self._interrupt(processor, now)
        processor.grants.add(quantum)
        processor.quantum = quantum if tasks else None
        processor.lease_until = Milliseconds(now + quantum.time_ms)
        processor.urgent = processor.changed = False
        if processor.expect_by is None:  # else only a report may put it off: grants come also while the worker hangs
            processor.expect(now)

    def _hurry(self, chosen: Sequence[Processor], now: Milliseconds) -> None:
        """Who has the cores of a strictly higher class gives them back before the end of a long step."""
        waiting = max((_urgency(each) for each in chosen if each.quantum is None), default=Priority.BATCH)
        for processor in self._loader.processors():
            if processor.grants.shrinking and _urgency(processor) < waiting:
                self._interrupt(processor, now)

    def _interrupt(self, processor: Processor, now: Milliseconds) -> None:
        """Abort the step in hand if it is a long one, and never twice before a step has completed.

        After the new lease is sent: the boundary that the abort makes must find it.
        """
        lease = processor.grants.last
        if lease is None or processor.interrupted:
            return
        prefill = sum(slot.prefill for slot in lease.slots if slot.prefill > 1)
        if processor.speeds.with_threads(lease.threads).expected_ms(1, min(prefill, lease.chunk)) >= WORTH_ABORTING_MS:
            processor.interrupted = True
            processor.worker.interrupt()
            self._trace.record(now, "step.aborted", model=processor.model)


def _urgency(processor: Processor) -> Priority:
    return max((task.priority for task in processor.seated), default=Priority.BATCH)
