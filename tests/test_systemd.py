"""Tests of the units, by systemd's own tools."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

SYSTEMD = Path(__file__).parent.parent / "systemd"
UNIT = SYSTEMD / "llmasosd.service"
USERS = SYSTEMD / "sysusers.d" / "llmasos.conf"


def run(*command: str | Path) -> str:
    """Run one of systemd's tools, and give what it says; it must be content."""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


def version() -> int:
    found = re.search(r"systemd (\d+)", run("systemd-analyze", "--version"))
    assert found
    return int(found[1])


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Nothing is unknown or deprecated, in the drop-ins neither that this systemd is new enough for."""
    for unit in (UNIT, SYSTEMD / "llmasos.slice"):
        shutil.copy(unit, tmp_path)
    known = tmp_path / "llmasosd.service.d"
    known.mkdir()
    for drop_in in (SYSTEMD / "llmasosd.service.d").iterdir():
        if int(drop_in.stem) <= version():
            shutil.copy(drop_in, known)
    assert run("systemd-analyze", "verify", tmp_path / UNIT.name, tmp_path / "llmasos.slice") == ""


def test_the_service_is_little_exposed() -> None:
    """1.7 of 10 at most."""
    run("systemd-analyze", "security", "--offline=true", "--threshold=17", UNIT)


def test_its_user_can_be_made() -> None:
    """By systemd-sysusers."""
    assert "Unknown" not in run("systemd-sysusers", "--dry-run", USERS)


def test_its_folders_can_be_made(tmp_path: Path) -> None:
    """The configuration may hold secrets: it is the group's to read, and root's to write."""
    (tmp_path / "etc").mkdir()
    user, group = os.getuid(), os.getgid()
    (tmp_path / "etc/passwd").write_text(f"root:x:{user}:{group}::/root:/bin/sh\n")
    (tmp_path / "etc/group").write_text(f"llmasos:x:{group}:\n")
    run("systemd-tmpfiles", f"--root={tmp_path}", "--create", SYSTEMD / "tmpfiles.d" / "llmasos.conf")
    assert (tmp_path / "etc/llmasos/apps").stat().st_mode & 0o777 == 0o750
    lines = [line.split() for line in (SYSTEMD / "tmpfiles.d" / "llmasos.conf").read_text().splitlines()]
    owners = {line[1]: line[3:] for line in lines if line[0] == "d"}
    assert owners["/etc/llmasos/apps"] == ["root", "llmasos"]


def test_the_unit_keeps_the_daemon_s_promises() -> None:
    """Ready is told, a hang is noticed, and a wrong configuration is not tried again."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(UNIT)
    service = unit["Service"]
    assert (service["Type"], service["RestartPreventExitStatus"]) == ("notify", "78")
    assert int(service["WatchdogSec"]) > 0
    assert set(service["Delegate"].split()) >= {"memory"}
    assert "landlock_restrict_self" in service["SystemCallFilter"]
    assert "MemoryMax" not in service


def test_the_image_s_broker_is_confined() -> None:
    """The unit that the card has in place of Debian's, whose exposure is 9.6."""
    unit = SYSTEMD.parent / "image/files/etc/systemd/system/mosquitto.service"
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(unit)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
