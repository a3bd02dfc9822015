"""KV pools: a model's grows while its tasks want cells that the budget has, and shrinks for another model's sake.

A context has a fixed number of cells, so another one is made: everybody in it is saved and goes on from there.
"""

from itertools import islice
from typing import Final

from llmasos_edge.kernel.loader import Loader
from llmasos_edge.kernel.processor import Phase, Processor
from llmasos_edge.kernel.seats import Seats
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Bytes, Milliseconds, Tokens

STEP: Final = 256  # cells
WORTH: Final = 1024  # cells more or less that are worth a new context


class Pools:
    """Not thread-safe: on the kernel's thread, for the dispatcher."""

    def __init__(self, loader: Loader, seats: Seats, trace: Trace) -> None:
        self._loader, self._seats, self._trace = loader, seats, trace

    def grow(self, processor: Processor, now: Milliseconds) -> None:
        """More cells for those who wait for a sequence, as far as the budget has them."""
        limits = processor.limits
        if processor.resizing is not None or not len(processor.ready) or limits.cells + WORTH > limits.most:
            return
        waiting = islice(processor.ready, limits.sequences - len(processor.running))
        wanted = processor.cells_for(waiting)
        if wanted <= limits.cells:
            return
        most = min(limits.most, max(_steps(wanted), limits.cells + WORTH))
        for cells in range(most, limits.cells + WORTH - 1, -STEP):
            if self._loader.can_resize(processor, Tokens(cells)):
                self._resize(processor, Tokens(cells), now)
                return

    def make_room(self, now: Milliseconds) -> bool:
        """Shrink pools for the first model that waits for memory, if that is enough. True: wait for it."""
        if any(each.resizing is not None for each in self._loader.processors()):
            return True
        short = self._loader.shortage()
        if short <= 0:
            return False
        spare = {each: self._spare(each) for each in self._loader.processors()}
        if sum(spare.values()) < short:
            return False
        for processor, size in sorted(spare.items(), key=lambda each: -each[1]):
            if short > 0 and size:
                fewer = -(-min(size, short) // max(1, processor.limits.cell_bytes))
                cells = Tokens(max(self._needed(processor), processor.limits.cells - _steps(fewer)))
                self._resize(processor, cells, now)
                short -= size
        return True

    def shrink(self, now: Milliseconds) -> Bytes:
        """Every pool to what is needed now. How many bytes are to come free."""
        spare = {each: self._spare(each) for each in self._loader.processors() if each.resizing is None}
        for processor, size in spare.items():
            if size:
                self._resize(processor, Tokens(self._needed(processor)), now)
        return Bytes(sum(spare.values()))

    def _spare(self, processor: Processor) -> Bytes:
        """Bytes of cells that nobody needs now."""
        cells = processor.limits.cells - self._needed(processor)
        resizable = processor.phase is Phase.LOADED and processor.limits.most > processor.limits.context
        return Bytes(cells * processor.limits.cell_bytes if resizable and cells >= WORTH else 0)

    def _needed(self, processor: Processor) -> int:
        return max(processor.limits.context, _steps(processor.cells_for(())))

    def _resize(self, processor: Processor, cells: Tokens, now: Milliseconds) -> None:
        self._trace.record(now, "pool.resizing", model=processor.model, cells=cells, was=processor.limits.cells)
        for task in tuple(processor.running.values()):
            self._seats.set_aside(processor, task, now)
        self._loader.begin_resize(processor, cells)
        processor.worker.resize(cells)


def _steps(cells: int) -> int:
    return -(-cells // STEP) * STEP
