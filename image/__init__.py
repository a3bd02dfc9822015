"""The SD-card image: `python -m image build` makes it, `python -m image test` boots it."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
WORK: Final = ROOT / ".state" / "image"
FILES: Final = Path(__file__).parent / "files"  # what goes into the image as it stands here
EPOCH: Final = (
    1_767_225_600  # the time of every file in it, 2026-01-01: two builds of the same parts are the same bytes
)
