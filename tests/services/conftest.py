"""A place for a swap file, for the tests of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.swap_rig import SwapRig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[SwapRig]:
    """A place for a swap file of 256 pages, and an arena of as many."""
    rig = SwapRig(tmp_path / "swap")
    yield rig
    rig.close()
