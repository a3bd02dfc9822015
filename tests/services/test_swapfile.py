"""Tests of the swap file: what is told, in which order things happen, and what is believed after a restart."""

import pytest

from benchmarks.swap_load import MODEL, content, damaged, record
from llmasos_edge.errors import Panic
from llmasos_edge.kernel.memory.backing import (
    Moved,
    MoveFailed,
    ReadDone,
    StoredSegment,
    WriteFailed,
    Written,
)
from llmasos_edge.kernel.memory.extent import PAGE, Move
from llmasos_edge.kernel.units import Bytes, SegmentId
from tests.services.swap_rig import PATIENCE_S, SwapRig, gated, numbers, pages, write

# --- what it is for


def test_what_was_written_comes_back(rig: SwapRig) -> None:
    """After a restart too: the record, the place, and every byte, also of what is larger than a piece."""
    rig.open()
    sizes = {1: 100, 2: 3 * PAGE, 3: (1 << 19) + 5}
    places = {1: pages(8, 1), 2: pages(0, 4), 3: pages(100, 129)}
    for number, size in sizes.items():
        write(rig, number, pages(0, 130), places[number], size)
        assert rig.event() == Written(SegmentId(number))
    swap = rig.open()
    assert swap.load() == [StoredSegment(record(number, sizes[number]), places[number]) for number in (2, 1, 3)]
    assert rig.reports == []
    for request, number in enumerate((3, 1, 2)):
        swap.read(request, MODEL, places[number], pages(126, 130), Bytes(sizes[number]))
        assert rig.event() == ReadDone(request)
        assert rig.parked(pages(126, 130), sizes[number]) == content(number, sizes[number])
    assert (swap.statistics().reads, swap.statistics().read) == (3, sum(sizes.values()))
    assert (swap.statistics().read_bytes_per_ms or 0) > 0


def test_what_is_forgotten_is_gone_and_its_place_can_be_taken_at_once(rig: SwapRig) -> None:
    """In the same breath, before and after a restart."""
    swap = rig.open()
    write(rig, 1, pages(0, 4), pages(0, 4))
    write(rig, 2, pages(4, 4), pages(4, 4))
    assert [rig.event(), rig.event()] == [Written(SegmentId(1)), Written(SegmentId(2))]
    swap.forget([SegmentId(1)])
    write(rig, 3, pages(8, 4), pages(0, 4))
    assert rig.event() == Written(SegmentId(3))
    swap = rig.open()
    assert numbers(swap.load()) == [3, 2]
    assert damaged(rig.folder, swap.load()) == []


def test_what_is_forgotten_is_struck_off_without_a_write(rig: SwapRig) -> None:
    """A moment later, or when the queue is flushed."""
    swap = rig.open()
    write(rig, 1, pages(0, 1), pages(0, 1))
    assert rig.event() == Written(SegmentId(1))
    swap.forget([SegmentId(1)])
    assert swap.flush(PATIENCE_S)
    assert rig.open().load() == []


def test_what_is_forgotten_before_its_turn_is_not_written(rig: SwapRig) -> None:
    """Its caller is told, and it does not come back."""
    disk = gated(rig)
    swap = rig.swap
    assert swap is not None
    write(rig, 1, pages(0, 1), pages(0, 1))
    assert disk.writing.acquire(timeout=PATIENCE_S)
    write(rig, 2, pages(1, 1), pages(1, 1))
    swap.forget([SegmentId(1), SegmentId(2)])
    disk.gate.set()
    assert rig.event() == Written(SegmentId(1))  # it was in hand
    assert rig.event() == WriteFailed(SegmentId(2), "forgotten")
    assert swap.flush(PATIENCE_S)
    assert rig.open().load() == []


def test_writes_that_wait_share_a_sync(rig: SwapRig) -> None:
    """While one is in hand, the others gather."""
    disk = gated(rig)
    write(rig, 0, pages(0, 1), pages(0, 1))
    assert disk.writing.acquire(timeout=PATIENCE_S)
    for number in range(1, 9):
        write(rig, number, pages(number, 1), pages(number, 1))
    disk.gate.set()
    assert [rig.event() for _ in range(9)] == [Written(SegmentId(number)) for number in range(9)]
    assert disk.done == ["write", "sync", *["write"] * 8, "sync"]
    assert rig.swap is not None
    assert (rig.swap.statistics().writes, rig.swap.statistics().written) == (9, 9 * PAGE)


def test_reads_come_before_writes_that_wait(rig: SwapRig) -> None:
    """Somebody waits for them."""
    rig.open()
    write(rig, 1, pages(0, 1), pages(0, 1))
    assert rig.event() == Written(SegmentId(1))
    disk = gated(rig)
    swap = rig.swap
    assert swap is not None
    for number in (2, 3):
        write(rig, number, pages(number, 1), pages(number, 1))
    assert disk.writing.acquire(timeout=PATIENCE_S)
    swap.read(7, MODEL, pages(0, 1), pages(9, 1), Bytes(PAGE))
    disk.gate.set()
    assert rig.event() == ReadDone(7)
    assert rig.parked(pages(9, 1)) == content(1, PAGE)
    assert [rig.event(), rig.event()] == [Written(SegmentId(2)), Written(SegmentId(3))]


def test_a_read_waits_for_bytes_that_are_still_to_be_written(rig: SwapRig) -> None:
    """So it never brings what was there before."""
    disk = gated(rig)
    swap = rig.swap
    assert swap is not None
    write(rig, 1, pages(0, 2), pages(0, 2))
    swap.read(7, MODEL, pages(0, 2), pages(9, 2), Bytes(2 * PAGE))
    disk.gate.set()
    assert [rig.event(), rig.event()] == [Written(SegmentId(1)), ReadDone(7)]
    assert rig.parked(pages(9, 2)) == content(1, 2 * PAGE)


# --- moves


def test_a_segment_moves_inside_the_swap_file(rig: SwapRig) -> None:
    """The pointer follows the data."""
    swap = rig.open()
    write(rig, 1, pages(0, 5), pages(20, 5))
    assert rig.event() == Written(SegmentId(1))
    move = Move(pages(20, 5), pages(0, 5))
    swap.move_stored(SegmentId(1), move)
    assert rig.event() == Moved(SegmentId(1), move)
    swap = rig.open()
    assert swap.load() == [StoredSegment(record(1, 5 * PAGE), pages(0, 5))]
    assert damaged(rig.folder, swap.load()) == []


def test_a_move_inside_the_swap_file_must_not_overlap(rig: SwapRig) -> None:
    """A power cut in the middle would leave neither the old bytes nor the new ones."""
    swap = rig.open()
    with pytest.raises(Panic, match="tear"):
        swap.move_stored(SegmentId(1), Move(pages(20, 5), pages(18, 5)))


def test_what_is_not_there_does_not_move(rig: SwapRig) -> None:
    """It was forgotten: the owner is told why, and all else goes on."""
    swap = rig.open()
    move = Move(pages(20, 5), pages(0, 5))
    swap.move_stored(SegmentId(1), move)
    event = rig.event()
    assert event == MoveFailed(SegmentId(1), move, "segment 1 is not in the swap file")
    write(rig, 2, pages(0, 1), pages(0, 1))
    assert rig.event() == Written(SegmentId(2))
