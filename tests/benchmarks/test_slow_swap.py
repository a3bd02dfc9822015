"""Tests of the slow disk that the sessions benchmark gives to its node."""

from pathlib import Path

import pytest

from benchmarks import slow_swap
from benchmarks.slow_swap import SlowDisk


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_reads_take_as_long_as_at_that_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, and none the longer for a pause before it."""
    clock = Clock()
    monkeypatch.setattr(slow_swap, "time", clock)
    disk = SlowDisk(1e6, tmp_path / "segments")
    disk.allocate(1 << 20)
    disk.write(memoryview(b"abcd" * 1000), 4096)
    room = bytearray(4000)
    for _ in range(5):
        disk.read(memoryview(room), 4096)
    assert bytes(room) == b"abcd" * 1000
    assert clock.now == pytest.approx(0.020)
    clock.now = 10.0
    disk.read(memoryview(room), 4096)
    assert clock.now == pytest.approx(10.004)
    disk.close()
