"""Extents: ranges of bytes of the arena, held or free."""

from dataclasses import dataclass
from typing import Final

PAGE: Final = 4096


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """A held range of the arena, in bytes; both numbers are multiples of PAGE."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


Hole = Extent
