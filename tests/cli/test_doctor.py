"""Tests of `doctor`: each check of the machine on made-up files, and the command against a node."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmasos_edge.cli.host import OLDEST_DATE, Finding, Host, mosquitto, synchronised
from llmasos_edge.cli.main import cli
from llmasos_edge.config.board import load_board
from llmasos_edge.errors import StoreError
from llmasos_edge.resources import resource
from llmasos_edge.services.store import ModelStore
from tests.cli.conftest import Invoke
from tests.cli.scripted_node import STATUS, ScriptedNode

GIB = 2**30
PI_4 = load_board("raspberry-pi-4", resource("board"))
JETSON = load_board("jetson-orin-nano", resource("board"))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A Raspberry Pi 4 of 2 GB: 1 GiB available, Linux 6.12, PSI, cgroup v2, and a process 7 that may lock 64 MiB."""
    proc, system = tmp_path / "proc", tmp_path / "sys"
    zone, cooler, sensor = (
        system / "class" / it for it in ("thermal/thermal_zone0", "thermal/cooling_device0", "hwmon/hwmon0")
    )
    cgroup, processors = system / "fs/cgroup", system / "devices/system/cpu"
    for folder in (proc / "sys/kernel", proc / "pressure", proc / "7", cgroup, processors, zone, cooler, sensor):
        folder.mkdir(parents=True)
    for file, text in (
        (processors / "online", "0-3"),
        (zone / "type", "cpu-thermal"),
        (zone / "temp", "48312"),
        (cooler / "type", "cpufreq-cpu0"),
        (cooler / "cur_state", "0"),
        (sensor / "name", "rpi_volt"),
        (sensor / "in0_lcrit_alarm", "0"),
    ):
        file.write_text(f"{text}\n")
    (proc / "meminfo").write_text("MemTotal:        2048000 kB\nMemAvailable:    1048576 kB\n")
    (proc / "sys/kernel/osrelease").write_text("6.12.0-rpi\n")
    (proc / "pressure/memory").write_text("")
    (proc / "7/limits").write_text("Max locked memory         67108864             67108864             bytes\n")
    (cgroup / "cgroup.controllers").write_text("cpu io memory pids\n")
    return Host(proc, system)


def test_memory(host: Host) -> None:
    """What of the budget is still to be used must be free."""
    assert host.memory(GIB).state == "ok"
    finding = host.memory(GIB + 1)
    assert (finding.state, finding.what) == ("FAIL", "1.0 GiB available, 1.0 GiB of the budget not yet used")
    assert "memory.budget" in finding.mend


def test_kernel(host: Host) -> None:
    """An old kernel fails, one without PSI is warned of, and one that is not the image's is told."""
    release = host.proc / "sys/kernel/osrelease"
    assert host.kernel(PI_4).what == "6.12.0-rpi, not of the image's linux-image-arm64"
    release.write_text("7.3.4+deb13-arm64\n")
    assert host.kernel(PI_4) == Finding("kernel", "ok", "7.3.4+deb13-arm64")
    release.write_text("5.15.148-tegra\n")
    assert host.kernel(JETSON).what == "5.15.148-tegra"
    (host.proc / "pressure/memory").unlink()
    assert "psi=1" in host.kernel(JETSON).mend
    release.write_text("4.9.337-tegra\n")
    assert host.kernel(JETSON).state == "FAIL"


@pytest.mark.parametrize(
    ("kib", "state"),
    [(930_000, "ok"), (1_900_000, "ok"), (1_300_000, "warn"), (500_000, "warn"), (16_000_000, "ok")],
)
def test_ram(host: Host, kib: int, state: str) -> None:
    """A size that the board is sold with, less what firmware and kernel keep; more than any is a newer board."""
    (host.proc / "meminfo").write_text(f"MemTotal: {kib} kB\n")
    finding = host.ram(PI_4)
    assert finding.state == state
    if state == "warn":
        assert finding.what.endswith("but such a board has 1.0 GiB, 2.0 GiB, 4.0 GiB, 8.0 GiB")
        assert "gpu_mem=" in finding.mend


def test_cores(host: Host) -> None:
    """A power mode or a word on the command line that turns cores off is told."""
    assert host.cores(PI_4) == Finding("cores", "ok", "4")
    (host.sys / "devices/system/cpu/online").write_text("0,2-4\n")
    finding = host.cores(JETSON)
    assert (finding.state, finding.what) == ("warn", "4 of 6 are online")
    assert "nvpmodel" in finding.mend


def test_temperature(host: Host) -> None:
    """Hot, slowed down, or without the sensor that the board should have: each is warned of."""
    thermal = host.sys / "class/thermal"
    assert host.temperature(PI_4) == Finding("heat", "ok", "cpu-thermal 48 C")
    (thermal / "thermal_zone0/temp").write_text("80000\n")
    assert host.temperature(PI_4).state == "warn"
    (thermal / "thermal_zone0/temp").write_text("70000\n")
    (thermal / "cooling_device0/cur_state").write_text("2\n")
    assert host.temperature(PI_4).what == "cpu-thermal 70 C: the processor is slowed down now"
    (thermal / "cooling_device0/type").write_text("pwm-fan\n")
    assert host.temperature(PI_4).state == "ok"
    (thermal / "thermal_zone0/temp").write_text("")
    assert host.temperature(PI_4).what == "no sensors; the kernel has no thermal zone cpu-thermal"


def test_power(host: Host) -> None:
    """A weak supply is told by the firmware of a Raspberry Pi, and by no other board."""
    sensor = host.sys / "class/hwmon/hwmon0"
    assert host.power() == Finding("power", "ok", "no under-voltage")
    (sensor / "in0_lcrit_alarm").write_text("1\n")
    alarm = host.power()
    assert alarm is not None
    assert alarm.state == "warn"
    (sensor / "name").write_text("nvme\n")
    assert host.power() is None


def test_controllers(host: Host) -> None:
    """A kernel without the memory controller, as on Raspberry Pi OS, gets the word for its command line."""
    assert host.controllers().state == "ok"
    controllers = host.sys / "fs/cgroup/cgroup.controllers"
    controllers.write_text("cpu io pids\n")
    assert "cgroup_enable=memory" in host.controllers().mend
    controllers.unlink()
    assert "unified_cgroup_hierarchy" in host.controllers().mend


def test_memlock(host: Host) -> None:
    """The limit must hold the pinned models."""
    assert host.memlock(7, 2**26).state == "ok"
    assert "LimitMEMLOCK" in host.memlock(7, 2**26 + 1).mend
    (host.proc / "7/limits").write_text("Max locked memory         unlimited            unlimited            bytes\n")
    assert host.memlock(7, 2**40).state == "ok"


def test_clock(host: Host) -> None:
    """A board that woke in 1970 is told, and one whose clock nothing keeps right."""
    assert host.clock(0, False).what.endswith("no clock chip that runs while the power is off, has passed already")
    (host.sys / "class/rtc/rtc0").mkdir(parents=True)
    assert host.clock(OLDEST_DATE, True) == Finding("clock", "ok", "2026-01-01 00:00 UTC, synchronised")
    assert host.clock(OLDEST_DATE, False).what == "2026-01-01 00:00 UTC, not synchronised"
    assert isinstance(synchronised(), bool)


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


def test_a_node_under_pressure(llmasos: Invoke, node: ScriptedNode, tmp_path: Path) -> None:
    """It is warned of, with what is done about it and why; else all is well."""
    found = checks(llmasos("doctor", "--json", "--state", str(tmp_path)).stdout)["pressure"]
    assert (found["state"], found["what"]) == ("warn", "idle models are dropped: the machine has 12 of 800 MiB left")
    node.results["status"] = STATUS | {"pressure": {"level": "none", "why": None}}
    found = checks(llmasos("doctor", "--json", "--state", str(tmp_path)).stdout)["pressure"]
    assert found["state"] == "ok"


def test_no_node(tmp_path: Path) -> None:
    """Without a daemon the machine is still checked, and the exit code is 1."""
    result = CliRunner().invoke(cli, ["--socket", str(tmp_path / "none"), "doctor", "--json"])
    found = checks(result.stdout)
    assert result.exit_code == 1
    assert found["daemon"]["state"] == "FAIL"
    assert {"kernel", "board", "ram", "cores", "heat"} <= found.keys()


def test_models_without_a_node(tmp_path: Path) -> None:
    """Without a daemon the state folder's models are read all the same, and the disk is measured."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    store = ModelStore(tmp_path / "models", None)
    store.add(tmp_path / "m.gguf", "mine")
    command = ["--socket", str(tmp_path / "none"), "doctor", "--json", "--state", str(tmp_path)]
    found = checks(CliRunner().invoke(cli, command).stdout)
    assert found["model"]["what"] == "mine: its file is whole"
    assert "a commit takes" in found["storage"]["what"]
    stored = store.find("mine")
    assert stored is not None
    stored.path.chmod(0o600)
    stored.path.write_bytes(b"other")
    assert checks(CliRunner().invoke(cli, command).stdout)["model"]["state"] == "FAIL"


def test_another_board(llmasos: Invoke, node: ScriptedNode, tmp_path: Path) -> None:
    """A node that is told to be another board than the machine is, is warned of; an unknown board fails."""
    warned = checks(llmasos("doctor", "--json", "--state", str(tmp_path)).stdout)["board"]
    assert warned["state"] == "warn"
    assert warned["what"].startswith("the node is told to be a raspberry-pi-4, and the machine is a generic-")
    node.results["status"] = STATUS | {"board": "raspberry-pi-44"}
    failed = checks(llmasos("doctor", "--json", "--state", str(tmp_path)).stdout)["board"]
    assert failed["state"] == "FAIL"
    assert 'did you mean "raspberry-pi-4"' in failed["what"]


def test_books_that_do_not_balance(llmasos: Invoke, node: ScriptedNode) -> None:
    """A broken invariant of the kernel fails, with what it is and the restart that mends it."""
    found = {"sound": False, "why": "Arena.check_invariants: holes overlap"}
    node.results["check"] = found
    result = llmasos("doctor", "--json")
    (books,) = [each for each in json.loads(result.stdout) if each["check"] == "books"]
    assert (result.exit_code, books["state"], books["what"]) == (1, "FAIL", found["why"])
    assert "restart" in books["mend"]
