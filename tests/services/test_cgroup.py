"""Tests of the control groups, on plain folders laid out as cgroup v2 is."""

import logging
import os
from pathlib import Path

import pytest

from llmasos_edge.services import cgroup

SERVICE = "system.slice/llmasosd.service"


class Tree:
    """/proc and a cgroup mount; the service's group is this process's alone."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.mount = folder / "proc", folder / "cgroup"
        self.group = self.mount / SERVICE
        (self.proc / "self").mkdir(parents=True)
        self.group.mkdir(parents=True)
        self.belong(f"0::/{SERVICE}\n")
        (self.group / "cgroup.controllers").write_text("cpu io memory pids\n")
        (self.group / "cgroup.subtree_control").write_text("")
        (self.group / "cgroup.procs").write_text(f"{os.getpid()}\n")

    def belong(self, line: str) -> None:
        (self.proc / "self" / "cgroup").write_text(line)

    def enter(self) -> cgroup.Cgroups:
        return cgroup.enter(self.proc, self.mount)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_the_daemon_moves_into_a_leaf(tree: Tree) -> None:
    """Only then may the group above it have limited children."""
    tree.enter()
    assert (tree.group / "daemon" / "cgroup.procs").read_text() == str(os.getpid())
    assert (tree.group / "cgroup.subtree_control").read_text() == "+memory"


def test_a_worker_has_a_group_with_a_limit(tree: Tree) -> None:
    """Two workers of one model, one of which is just ending, don't share one; a group goes with its worker."""
    cgroups = tree.enter()
    remove_first, _ = cgroups.add("smollm2-135m", 41, 300 << 20), cgroups.add("smollm2-135m", 42, 300 << 20)
    first, second = (tree.group / f"worker-smollm2-135m-{pid}" for pid in (41, 42))
    assert second.is_dir()
    written = {file.name: file.read_text() for file in first.iterdir()}
    assert written == {"memory.max": str(300 << 20), "memory.oom.group": "1", "cgroup.procs": "41"}
    for file in first.iterdir():
        file.unlink()  # in a real tree they are no obstacle
    remove_first()
    assert (first.exists(), second.exists()) == (False, True)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree: tree.belong("4:memory:/user\n1:name=systemd:/\n"),
        lambda tree: tree.belong("0::/\n"),
        lambda tree: (tree.proc / "self" / "cgroup").unlink(),
        lambda tree: (tree.group / "cgroup.controllers").write_text("cpu pids\n"),
        lambda tree: (tree.group / "cgroup.procs").write_text(f"{os.getpid()}\n{os.getppid()}\n"),
        lambda tree: (tree.group / "cgroup.subtree_control").unlink(),  # root may write everything that is there
    ],
    ids=["v1", "root group", "no proc", "no memory controller", "a shell's group", "not delegated"],
)
def test_a_group_that_is_not_its_own_is_left_alone(tree: Tree, spoil: object, caplog: pytest.LogCaptureFixture) -> None:
    """Said once; then workers run as they would without."""
    assert callable(spoil)
    spoil(tree)
    with caplog.at_level(logging.INFO):
        cgroups = tree.enter()
        for pid in (41, 42):
            cgroups.add("m", pid, 1)()
    assert [record.message for record in caplog.records if "no control groups" in record.message]
    assert len(caplog.records) == 1
    assert not (tree.group / "daemon").exists()


def test_a_kernel_that_refuses_is_told(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    """The worker runs all the same."""
    cgroups = tree.enter()
    (tree.group / "worker-m-41").write_text("in the way")
    cgroups.add("m", 41, 1)()
    assert "runs without a memory limit" in caplog.text
