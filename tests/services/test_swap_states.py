"""Tests of swap file and arenas together: whatever happens in whatever order, they agree with a plain model."""

import contextlib
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from benchmarks.swap_load import MODEL, content, damaged, record
from llmasos_edge.kernel.memory.arena import Arena
from llmasos_edge.kernel.memory.backing import Moved, ReadDone, StoredSegment, Written
from llmasos_edge.kernel.memory.compaction import plan
from llmasos_edge.kernel.memory.extent import PAGE, Extent
from llmasos_edge.kernel.memory.fit import FITS
from llmasos_edge.kernel.units import Bytes, SegmentId
from tests.services.swap_rig import PATIENCE_S, SwapRig

ARENA, SWAP = 24, 32  # pages


class SwapMachine(RuleBasedStateMachine):
    """The kernel's side: two arenas and what lies in them. A restart forgets one of them; what is stored comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.rig = SwapRig(Path(self.folder.name) / "swap", ARENA, SWAP)
        self.number = 0
        self.sizes: dict[int, int] = {}
        self.parked: dict[int, Extent] = {}
        self.stored: dict[int, Extent] = {}
        self.forgotten: set[int] = set()
        self.waiting: dict[int, Extent] = {}  # written, and nobody asked yet whether it is there

    @initialize(fit=st.sampled_from(sorted(FITS)))
    def choose(self, fit: str) -> None:
        self.arena, self.places = Arena(Bytes(ARENA * PAGE), fit), Arena(Bytes(SWAP * PAGE), fit)
        self.swap = self.rig.open()

    def some(self, data: st.DataObject, what: dict[int, Extent]) -> int:
        """One of them."""
        return data.draw(st.sampled_from(sorted(what)))

    @rule(size=st.integers(1, 5 * PAGE))
    def park(self, size: int) -> None:
        """A worker saves a segment."""
        extent = self.arena.allocate(Bytes(size))
        if extent is not None:
            self.number += 1
            self.rig.park(self.number, extent, size)
            self.parked[self.number], self.sizes[self.number] = extent, size

    @precondition(lambda self: self.parked)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """It is written ahead; both extents are held."""
        number = self.some(data, self.parked)
        place = self.places.allocate(Bytes(self.sizes[number]))
        if place is not None and number not in {*self.stored, *self.waiting, *self.forgotten}:
            self.waiting[number] = place
            self.swap.write(record(number, self.sizes[number]), self.parked[number], place)
        elif place is not None:
            self.places.free(place)

    @precondition(lambda self: self.waiting)
    @rule()
    def hear(self) -> None:
        """All that was written is told, in order."""
        for number in sorted(self.waiting, key=list(self.waiting).index):
            assert self.rig.event() == Written(SegmentId(number))
            self.stored[number] = self.waiting.pop(number)

    @precondition(lambda self: self.stored.keys() & self.parked.keys())
    @rule(data=st.data())
    def swap_out(self, data: st.DataObject) -> None:
        """Its place in the arena is given back."""
        self.release(data.draw(st.sampled_from(sorted(self.stored.keys() & self.parked.keys()))))

    def release(self, number: int) -> None:
        """The pages first, then the extent."""
        extent = self.parked.pop(number)
        self.rig.memory.discard(MODEL, extent)
        self.arena.free(extent)

    @precondition(lambda self: self.stored and not self.waiting)
    @rule(data=st.data())
    def swap_in(self, data: st.DataObject) -> None:
        """One that is not in the arena comes back, byte for byte."""
        number = self.some(data, self.stored)
        extent = self.arena.allocate(Bytes(self.sizes[number]))
        if extent is None or number in self.parked:
            if extent is not None:
                self.arena.free(extent)
            return
        self.swap.read(number, MODEL, self.stored[number], extent, Bytes(self.sizes[number]))
        assert self.rig.event() == ReadDone(number)
        self.parked[number] = extent

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """On the disk; its place can be taken at once."""
        number = self.some(data, self.stored)
        self.swap.forget([SegmentId(number)])
        self.places.free(self.stored.pop(number))
        self.forgotten.add(number)

    @precondition(lambda self: not self.waiting)
    @rule()
    def compact(self) -> None:
        """Both, as far as it goes."""
        for arena, where in ((self.arena, self.parked), (self.places, self.stored)):
            moves = plan(arena, where.values(), Bytes(SWAP * PAGE), overlapping=arena is self.arena)
            for move in moves:
                (number,) = [each for each, extent in where.items() if extent == move.source]
                arena.open_move(move)
                if arena is self.arena:
                    self.rig.memory.move(MODEL, move)
                else:
                    self.swap.move_stored(SegmentId(number), move)
                    assert self.rig.event() == Moved(SegmentId(number), move)
                arena.close_move(move, moved=True)
                where[number] = move.target

    @rule(flush=st.booleans())
    def restart(self, flush: bool) -> None:
        """In good order, or with whatever still waits undone; the arena is lost, and the index says what is held."""
        if flush:
            assert self.swap.flush(PATIENCE_S)
            self.stored |= self.waiting
            self.waiting.clear()
        self.rig.stop()
        for number in list(self.parked):
            self.release(number)
        self.swap = self.rig.open()
        found = {each.record.segment: each for each in self.swap.load()}
        assert self.rig.reports == []
        assert damaged(self.rig.folder, list(found.values())) == []
        assert self.stored.keys() <= found.keys()
        assert flush or found.keys() <= self.stored.keys() | self.waiting.keys() | self.forgotten
        assert not flush or found.keys() == self.stored.keys()
        # How far the thread was, nobody knows. What it had written unheard is to go, and as others that were forgotten
        # it may be found again if the next restart comes at once.
        unheard = found.keys() - self.stored.keys()
        self.swap.forget(unheard)
        self.forgotten |= unheard
        self.waiting.clear()
        self.places = Arena(Bytes(SWAP * PAGE), self.places.fit)
        for number, extent in self.stored.items():
            assert found[SegmentId(number)] == StoredSegment(record(number, self.sizes[number]), extent)
            assert self.places.reserve(extent)

    @invariant()
    def agree(self) -> None:
        """Every parked byte is what it was; the arena's memory is what is held, and no more."""
        if not hasattr(self, "arena"):
            return
        self.arena.check_invariants()
        self.places.check_invariants()
        assert self.places.statistics().used == sum(
            extent.size for extent in (*self.stored.values(), *self.waiting.values())
        )
        assert self.rig.memory.allocated() <= self.arena.statistics().used
        for number, extent in self.parked.items():
            assert self.rig.parked(extent, self.sizes[number]) == content(number, self.sizes[number])

    def teardown(self) -> None:
        self.rig.close()
        with contextlib.suppress(OSError):
            self.folder.cleanup()


TestSwap = SwapMachine.TestCase
TestSwap.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
