"""Extents: ranges of bytes of the arena or the swap file, held or free."""

from dataclasses import dataclass
from typing import Final

PAGE: Final = 4096
CONTROL_PAGE: Final = 4096  # bytes before the arena in a model's memfd: byte 0 is the abort byte, byte 1 stays 0


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """A range, in bytes; both numbers are multiples of PAGE."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size

    def overlaps(self, other: "Extent") -> bool:
        return self.offset < other.end and other.offset < self.end


Hole = Extent


@dataclass(frozen=True, slots=True)
class Move:
    """Bytes of a held extent that are to go elsewhere. Where the two overlap, the target is the lower."""

    source: Extent
    target: Extent

    @property
    def overlaps(self) -> bool:
        return self.source.overlaps(self.target)

    @property
    def claimed(self) -> Extent:
        """What of the target is not the source's."""
        target = self.target
        return Extent(target.offset, self.source.offset - target.offset) if self.overlaps else target

    @property
    def vacated(self) -> Extent:
        """What of the source is not the target's."""
        source = self.source
        return Extent(self.target.end, source.end - self.target.end) if self.overlaps else source
