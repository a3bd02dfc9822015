"""Tests of the arena's memory: it holds what is written, gives back what is discarded, and can't be cut."""

import mmap
import os
import random
from collections.abc import Iterator

import pytest

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.memory.extent import CONTROL_PAGE, PAGE, Extent, Move
from llmasos_edge.kernel.units import Bytes, ModelId
from llmasos_edge.services.arena_memory import ArenaMemory

SIZE = Bytes(8 << 20)
MODEL = ModelId("smollm2")


@pytest.fixture
def memory() -> Iterator[ArenaMemory]:
    """An arena of 8 MiB."""
    memory = ArenaMemory(SIZE)
    yield memory
    memory.close()


def fill(memory: ArenaMemory, extent: Extent, seed: int) -> bytes:
    """Write something there, as a worker does."""
    data = random.Random(seed).randbytes(extent.size)
    assert os.pwrite(memory.fd(MODEL), data, CONTROL_PAGE + extent.offset) == extent.size
    return data


def content(memory: ArenaMemory, extent: Extent, model: ModelId = MODEL) -> bytes:
    """What is there."""
    return b"".join(bytes(piece) for piece in memory.pieces(model, extent, extent.size))


def test_each_model_has_a_memory_of_its_own(memory: ArenaMemory) -> None:
    """As long as the arena and the control page, made once, and sparse."""
    other = ModelId("other")
    assert memory.fd(MODEL) == memory.fd(MODEL) != memory.fd(other)
    assert os.fstat(memory.fd(MODEL)).st_size == CONTROL_PAGE + SIZE
    extent = Extent(3 * PAGE, 5 * PAGE)
    data = fill(memory, extent, 1)
    assert memory.allocated() == extent.size
    assert content(memory, extent) == data
    assert content(memory, extent, other) == bytes(extent.size)


def test_what_is_discarded_is_given_back_at_once(memory: ArenaMemory) -> None:
    """Its pages alone, also where a worker has them mapped."""
    with mmap.mmap(memory.fd(MODEL), CONTROL_PAGE + SIZE) as worker:
        worker[0] = 1
        whole = Extent(0, 4 << 20)
        data = fill(memory, whole, 1)
        assert len(worker[CONTROL_PAGE : CONTROL_PAGE + whole.size]) == whole.size
        memory.discard(MODEL, Extent(PAGE, 3 << 20))
        assert memory.allocated() == CONTROL_PAGE + (1 << 20)
        assert worker[0] == 1
        assert content(memory, Extent(0, PAGE)) == data[:PAGE]
        assert content(memory, Extent(PAGE, PAGE)) == bytes(PAGE)


@pytest.mark.parametrize("down_by", [PAGE, 3 << 20])
def test_a_move_keeps_the_bytes_and_leaves_no_pages_behind(memory: ArenaMemory, down_by: int) -> None:
    """Also where target and source overlap, and more than is mapped at a time."""
    source = Extent(4 << 20, (2 << 20) + PAGE)
    target = Extent(source.offset - down_by, source.size)
    data = fill(memory, source, 2)
    memory.move(MODEL, Move(source, target))
    assert content(memory, target) == data
    assert memory.allocated() == target.size


def test_nobody_can_cut_it_off(memory: ArenaMemory) -> None:
    """A worker that shortens it would kill whoever maps it (SIGBUS); nor can it seal it against writing."""
    for size in (0, CONTROL_PAGE + SIZE + PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd(MODEL), size)


def test_an_extent_outside_the_arena_is_a_panic(memory: ArenaMemory) -> None:
    """It would be another's memory, or the control page."""
    for extent in (Extent(-PAGE, PAGE), Extent(SIZE, PAGE), Extent(SIZE - PAGE, 2 * PAGE), Extent(0, 0)):
        with pytest.raises(Panic, match="in an arena of"):
            memory.discard(MODEL, extent)
