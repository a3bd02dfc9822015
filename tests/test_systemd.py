"""Tests of the units, by systemd's own tools."""

import configparser
import subprocess
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parent.parent / "systemd"
UNIT = SYSTEMD / "llmasosd.service"


@pytest.mark.parametrize(
    "command",
    [
        ["systemd-analyze", "verify", str(UNIT)],
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(UNIT)],  # 2.0 of 10
        ["systemd-sysusers", "--dry-run", str(SYSTEMD / "sysusers.d" / "llmasos.conf")],
    ],
    ids=["verify", "security", "sysusers"],
)
def test_systemd_accepts(command: list[str]) -> None:
    """systemd finds nothing wrong with the unit, little to attack in it, and can make its user."""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "Unknown" not in answer.stderr


def test_the_unit_keeps_the_daemon_s_promises() -> None:
    """Ready is told, a hang is noticed, and a wrong configuration is not tried again."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(UNIT)
    service = unit["Service"]
    assert (service["Type"], service["RestartPreventExitStatus"]) == ("notify", "78")
    assert int(service["WatchdogSec"]) > 0
