"""Tests of `doctor`: each check of the machine on made-up files, and the command against a node."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmasos_edge.cli.host import OLDEST_DATE, Host, mosquitto
from llmasos_edge.cli.main import cli
from llmasos_edge.errors import StoreError
from tests.cli.conftest import Invoke
from tests.cli.scripted_node import STATUS, ScriptedNode

GIB = 2**30


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A machine with 1 GiB available, Linux 6.12, PSI, cgroup v2, and a process 7 that may lock 64 MiB."""
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    for folder in (proc / "sys/kernel", proc / "pressure", proc / "7", cgroup):
        folder.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:        2048000 kB\nMemAvailable:    1048576 kB\n")
    (proc / "sys/kernel/osrelease").write_text("6.12.0-rpi\n")
    (proc / "pressure/memory").write_text("")
    (proc / "7/limits").write_text("Max locked memory         67108864             67108864             bytes\n")
    (cgroup / "cgroup.controllers").write_text("cpu io memory pids\n")
    return Host(proc, cgroup)


def test_memory(host: Host) -> None:
    """What of the budget is still to be used must be free."""
    assert host.memory(GIB).state == "ok"
    finding = host.memory(GIB + 1)
    assert (finding.state, finding.what) == ("FAIL", "1.0 GiB available, 1.0 GiB of the budget not yet used")
    assert "memory.budget" in finding.mend


def test_kernel(host: Host) -> None:
    """An old kernel fails, one without PSI is warned of."""
    assert host.kernel().state == "ok"
    (host.proc / "pressure/memory").unlink()
    assert "psi=1" in host.kernel().mend
    (host.proc / "sys/kernel/osrelease").write_text("4.9.337-tegra\n")
    assert host.kernel().state == "FAIL"


def test_controllers(host: Host) -> None:
    """A kernel without the memory controller, as on Raspberry Pi OS, gets the word for its command line."""
    assert host.controllers().state == "ok"
    (host.cgroup / "cgroup.controllers").write_text("cpu io pids\n")
    assert "cgroup_enable=memory" in host.controllers().mend
    (host.cgroup / "cgroup.controllers").unlink()
    assert "unified_cgroup_hierarchy" in host.controllers().mend


def test_memlock(host: Host) -> None:
    """The limit must hold the pinned models."""
    assert host.memlock(7, 2**26).state == "ok"
    assert "LimitMEMLOCK" in host.memlock(7, 2**26 + 1).mend
    (host.proc / "7/limits").write_text("Max locked memory         unlimited            unlimited            bytes\n")
    assert host.memlock(7, 2**40).state == "ok"


def test_clock(host: Host) -> None:
    """A board that woke in 1970 is told."""
    assert host.clock(OLDEST_DATE).state == "ok"
    assert host.clock(0).what == "1970-01-01 00:00 UTC has passed already"


def test_disk_of_a_folder_that_is_not_yet(host: Host, tmp_path: Path) -> None:
    """The room is that of the nearest folder that is there."""
    assert f"in {tmp_path}" in host.disk(tmp_path / "state" / "deep").what


def test_mosquitto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker's program is found on the path; without it a node with a managed broker fails."""
    program = tmp_path / "mosquitto"
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mosquitto(needed=True).what == str(program)


def checks(text: str) -> dict[str, dict[str, str]]:
    return {finding["check"]: finding for finding in json.loads(text)}


def test_healthy_node(llmasos: Invoke, node: ScriptedNode, tmp_path: Path) -> None:
    """With a node in order, every check about it is ok, and its models' files are read."""
    result = llmasos("doctor", "--json", "--state", str(tmp_path))
    found = checks(result.stdout)
    assert {found[name]["state"] for name in ("daemon", "ready", "broker", "model")} == {"ok"}
    assert [call.args for call in node.calls if call.name == "model.verify"] == [{"model": "smollm2-135m"}]


def test_sick_node(llmasos: Invoke, node: ScriptedNode) -> None:
    """What is wrong with a node fails, each with a mend on the line after it, and the exit code is 1."""
    node.results["status"] = STATUS | {
        "ready": False,
        "state": "starting",
        "broker": {"url": "mqtt://x", "connected": False, "managed": True},
    }
    node.results["model.verify"] = StoreError("smollm2-135m: damaged")
    result = llmasos("doctor")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    for start in (
        "FAIL  ready",
        "FAIL  broker     not connected to mqtt://x",
        "FAIL  model      smollm2-135m: damaged",
    ):
        (place,) = [n for n, line in enumerate(lines) if line.startswith(start)]
        assert lines[place + 1].strip().startswith("mend: ")


def test_no_node(tmp_path: Path) -> None:
    """Without a daemon the machine is still checked, and the exit code is 1."""
    result = CliRunner().invoke(cli, ["--socket", str(tmp_path / "none"), "doctor", "--json"])
    found = checks(result.stdout)
    assert result.exit_code == 1
    assert found["daemon"]["state"] == "FAIL"
    assert "kernel" in found
