"""Test of kill -9 in the middle of swapping out (`./run bench swap-crash` does it 200 times)."""

from pathlib import Path

from benchmarks.swap_crash import Findings, kill_once


def test_a_kill_at_any_moment_loses_nothing_that_was_told(tmp_path: Path) -> None:
    """Nor is anything found that is not whole; the next one begins where the one before was killed."""
    findings = Findings()
    for seed in range(12):
        kill_once(tmp_path / "swap", seed, findings)
    assert findings.counts["written"] > 12
    assert findings.counts["found"] > 12
    assert (findings.counts["damaged"], findings.counts["lost"], findings.counts["reports"]) == (0, 0, 0)
