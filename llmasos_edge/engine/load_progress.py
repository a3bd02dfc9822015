"""How far a load has come, as a share of 1: the file's part is read, then the warm-up's steps are done.

llama.cpp maps the file with all of its pages at once, and its own callback is called when that is over. So the file is
read here before it, piece by piece; its pages stay in the page cache, and llama.cpp finds them there.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

READING: Final = 0.75  # the file's part; what is read from a card takes longer than the warm-up does
PIECE_BYTES: Final = 1 << 20
EVERY_S: Final = 0.1


class LoadProgress:
    """`tell` is called ten times a second at most, and with what is more than before."""

    def __init__(self, tell: Callable[[float], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._told_at = clock()

    def read(self, path: Path) -> None:
        """Read the file to its end."""
        size, done, piece = max(1, path.stat().st_size), 0, bytearray(PIECE_BYTES)
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(piece):
                done += count
                self._at(READING * min(1.0, done / size))

    def warmed_up(self, share: float) -> None:
        """So much of the warm-up is done."""
        self._at(READING + (1 - READING) * share)

    def _at(self, fraction: float) -> None:
        now = self._clock()
        if now - self._told_at >= EVERY_S:
            self._told_at = now
            self._tell(round(fraction, 3))
