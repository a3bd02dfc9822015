"""Tests of the watch for shortage of memory, on plain folders laid out as the kernel's are."""

import logging
from pathlib import Path

import pytest

from llmasos_edge.kernel.memory.pressure import Space
from llmasos_edge.services.monitor import system_memory
from llmasos_edge.services.pressure import Watch

MIB = 1 << 20
PSI = "some avg10=1.00 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"


class Machine:
    """A process in the group `slice/service`, whose slice has a limit of 400 MiB; a second passes at each look."""

    def __init__(self, folder: Path, version: str) -> None:
        self.proc = folder / "proc"
        self.now = 0.0
        self.v2 = version == "v2"
        mount = folder / "cgroup" if self.v2 else folder / "cgroup/memory"
        self.slice = mount / "slice"
        (self.slice / "service").mkdir(parents=True)
        (self.proc / "self").mkdir(parents=True)
        line = "0::/slice/service\n" if self.v2 else "9:cpu:/x\n4:memory:/slice/service\n0::/\n"
        (self.proc / "self/cgroup").write_text(line)
        names = ("memory.max", "memory.current") if self.v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        for group in (mount, self.slice, self.slice / "service"):
            (group / names[0]).write_text("max\n" if self.v2 else f"{2**63 - 4096}\n")
            (group / names[1]).write_text(f"{390 * MIB}\n")
        (self.slice / names[0]).write_text(f"{400 * MIB}\n")
        prefix, mapped = ("", "file_mapped") if self.v2 else ("total_", "mapped_file")
        counts = {"inactive_file": 70, "active_file": 30, mapped: 80, "anon": 290}
        (self.slice / "memory.stat").write_text("".join(f"{prefix}{key} {n * MIB}\n" for key, n in counts.items()))
        self.hit(5)

    def hit(self, count: int) -> None:
        """So many times in all, since the group was made."""
        text = f"low 0\nhigh 2\nmax {count}\noom 0\noom_kill 0\n"
        (self.slice / ("memory.events" if self.v2 else "memory.failcnt")).write_text(text if self.v2 else f"{count}\n")

    def stall(self, microseconds: int, *, whose: str = "proc") -> None:
        """So many in all."""
        file = self.proc / "pressure/memory" if whose == "proc" else self.slice / "memory.pressure"
        file.parent.mkdir(exist_ok=True)
        file.write_text(PSI.format(microseconds))

    def clock(self) -> float:
        self.now += 1.0
        return self.now

    def watch(self) -> Watch:
        return Watch(self.clock, self.proc, self.proc.parent / "cgroup")


@pytest.fixture(params=["v1", "v2"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine(tmp_path, request.param)


def group(watch: Watch) -> Space:
    """What it sees of the one group that has a limit."""
    found, whole = watch.look()
    assert whole.name == "the machine"
    return found


def test_the_group_with_a_limit_is_watched(machine: Machine) -> None:
    """Pages of files that nobody maps can be had, and count as available: 10 MiB to the limit, and 20 such."""
    assert group(machine.watch()) == Space("the control group slice", 30 * MIB, 400 * MIB)  # type: ignore[arg-type]


def test_hits_are_those_since_the_last_look(machine: Machine) -> None:
    """What happened before the start is nobody's news."""
    watch = machine.watch()
    assert group(watch).hits == 0
    machine.hit(8)
    assert [group(watch).hits, group(watch).hits] == [3, 0]


def test_stalls_are_a_share_of_the_time(machine: Machine) -> None:
    """Of the last second; the machine's where a group does not count its own."""
    machine.stall(1_000_000)
    watch = machine.watch()
    watch.look()
    machine.stall(1_250_000)
    ours, whole = watch.look()
    assert (ours.stalled, whole.stalled) == (0.25, 0.25)
    assert [space.stalled for space in watch.look()] == [0.0, 0.0]


def test_a_group_that_counts_its_own_stalls_is_believed(tmp_path: Path) -> None:
    """Version 2: others' stalls are not ours."""
    machine = Machine(tmp_path, "v2")
    machine.stall(1_000_000)
    machine.stall(0, whose="slice")
    watch = machine.watch()
    watch.look()
    machine.stall(1_500_000)
    machine.stall(100_000, whose="slice")
    ours, whole = watch.look()
    assert (ours.stalled, whole.stalled) == (0.1, 0.5)


def test_memory_high_is_a_limit_too(tmp_path: Path) -> None:
    """Beyond it a group is throttled."""
    machine = Machine(tmp_path, "v2")
    (machine.slice / "memory.high").write_text(f"{392 * MIB}\n")
    assert group(machine.watch()) == Space("the control group slice", 22 * MIB, 392 * MIB)  # type: ignore[arg-type]


def test_a_group_that_goes_is_watched_no_longer(machine: Machine) -> None:
    """Nor one whose limit is lifted."""
    watch = machine.watch()
    for file in machine.slice.glob("memory.*"):
        file.unlink()
    assert [space.name for space in watch.look()] == ["the machine"]


def test_without_groups_and_stalls_there_is_the_machine(tmp_path: Path) -> None:
    """As the system reports it."""
    (space,) = Watch(proc=tmp_path, cgroups=tmp_path).look()
    assert (space.total, space.stalled, space.hits) == (system_memory().total, 0.0, 0)
    assert 0 < space.available < space.total


@pytest.mark.parametrize("text", ["", "some avg10=0.00\n"])
def test_a_file_of_stalls_without_a_total(machine: Machine, text: str) -> None:
    """Nobody stalled."""
    machine.stall(0)
    (machine.proc / "pressure/memory").write_text(text)
    assert [space.stalled for space in machine.watch().look()] == [0.0, 0.0]


def test_the_log_says_what_is_watched(machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, at the start."""
    with caplog.at_level(logging.INFO):
        machine.stall(0)
        machine.watch()
        Watch(proc=tmp_path / "none", cgroups=tmp_path / "none")
    assert [record.message for record in caplog.records] == [
        "memory pressure: watching the machine; control groups with limits of 400 MiB; stalls are counted",
        "memory pressure: watching the machine; no control group has a limit; this kernel counts no stalls (`psi=1`)",
    ]
