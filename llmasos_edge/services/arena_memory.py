"""The arena's memory: a memfd for each model, made by the daemon and kept for its life, so that it outlives workers.

Each begins with the control page and is as long as the whole arena. The kernel's extents are ranges behind that page;
no two overlap, in whatever memfds they are, so that the pages of all memfds together are never more than the arena.
"""

from llmasos_edge.kernel.memory.extent import Extent, Move
from llmasos_edge.kernel.units import Bytes, ModelId


class ArenaMemory:
    """Calls from any thread; ranges of different extents do not disturb each other."""

    def __init__(self, size: Bytes) -> None: ...

    def fd(self, model: ModelId) -> int:
        """The model's memfd, made at first need: for a worker to inherit and map (a dup is its own). Ours to close.

        It can neither shrink nor grow (sealed): whoever maps it never meets SIGBUS.
        """
        raise NotImplementedError

    def discard(self, model: ModelId, extent: Extent) -> None:
        """Give the extent's pages back, now. For what is freed, before anyone else can have it."""

    def move(self, model: ModelId, move: Move) -> None:
        """Copy the source's bytes to the target, and discard what is then left of the source."""

    def allocated(self) -> Bytes:
        """The bytes that all memfds really hold, control pages included."""
        raise NotImplementedError

    def close(self) -> None:
        """Close all memfds; their pages live as long as a worker maps them."""
