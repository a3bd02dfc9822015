"""The node's control groups: one for the daemon, one for each worker, with a limit on its memory (cgroup v2).

A service with `Delegate=` owns the part of the tree that it runs in, and no process may stay in a group that has
limited children (the kernel's "no internal processes"). So the daemon moves into a leaf of its own first.
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)
PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")
DAEMON: Final = "daemon"
PROCS: Final = "cgroup.procs"


class Cgroups:
    """Below `home`; without one there are none."""

    def __init__(self, home: Path | None) -> None:
        self._home = home

    def add(self, name: str, pid: int, memory_max: int) -> Callable[[], None]:
        """Move a process that has just begun into a new group. Returns what removes the group once that is gone."""
        if self._home is None:
            return lambda: None
        group = self._home / f"worker-{name}-{pid}"
        try:
            group.mkdir()
            (group / "memory.max").write_text(str(memory_max))
            (group / "memory.oom.group").write_text("1")
            (group / PROCS).write_text(str(pid))
        except OSError as error:
            log.warning("the worker of %s runs without a memory limit: %s", name, error)
        return partial(_remove, group)


def _remove(group: Path) -> None:
    with suppress(OSError):  # it was never made
        group.rmdir()


def enter(proc: Path = PROC, cgroups: Path = CGROUPS) -> Cgroups:
    """Take possession of the group that this process runs in, if it is its own; before it starts any other process."""
    home = _own_group(proc, cgroups)
    if home is None:
        log.info("workers have no control groups: this process has no delegated cgroup v2 of its own (`Delegate=`)")
        return Cgroups(None)
    try:
        (home / DAEMON).mkdir(exist_ok=True)
        (home / DAEMON / PROCS).write_text(str(os.getpid()))
        (home / "cgroup.subtree_control").write_text("+memory")
    except OSError as error:
        log.warning("workers have no control groups: %s: %s", home, error)
        return Cgroups(None)
    log.info("workers have control groups below %s", home)
    return Cgroups(home)


def _own_group(proc: Path, cgroups: Path) -> Path | None:
    """The group of this process if it may divide it, and is alone in it."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
        place = next(line.removeprefix("0::/") for line in lines if line.startswith("0::"))
        group = cgroups / place
        memory = "memory" in (group / "cgroup.controllers").read_text().split()
        alone = (group / PROCS).read_text().split() == [str(os.getpid())]
    except (OSError, StopIteration):
        return None
    mine = os.access(group / "cgroup.subtree_control", os.W_OK) and os.access(group, os.W_OK)
    return group if memory and alone and mine and place else None
