"""What `doctor` finds out about the machine under a node: memory, disk, clock, kernel, limits."""

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmasos_edge.cli.render import size

MIB = 2**20
DISK_FLOOR = 512 * MIB
KERNEL_FLOOR = (5, 10)
OLDEST_DATE = 1_767_225_600  # 2026-01-01: this program did not exist before
CONTROLLERS = ("cpu", "memory")


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check; `mend` says what to do unless it is ok. Only FAIL makes doctor fail."""

    check: str
    state: Literal["ok", "warn", "FAIL"]
    what: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """The machine, through the files in which the kernel describes it."""

    proc: Path = Path("/proc")
    cgroup: Path = Path("/sys/fs/cgroup")

    def memory(self, still_needed: int) -> Finding:
        """Whether the node's budget, less what it uses already, is free (MemAvailable, proc(5))."""
        match = re.search(r"MemAvailable:\s+(\d+) kB", (self.proc / "meminfo").read_text())
        available = int(match[1]) * 1024 if match else 0
        what = f"{size(available)} available, {size(still_needed)} of the budget not yet used"
        if available >= still_needed:
            return Finding("memory", "ok", what)
        return Finding("memory", "FAIL", what, "lower `memory.budget` in the node file, or stop other programs")

    def disk(self, state: Path) -> Finding:
        """Room for the journal and models where the node keeps its state."""
        folder = next(it for it in (state, *state.absolute().parents) if it.exists())
        free = shutil.disk_usage(folder).free
        what = f"{size(free)} free in {folder}"
        if free >= DISK_FLOOR:
            return Finding("disk", "ok", what)
        return Finding("disk", "FAIL", what, "remove models that nobody needs: `llmasos model rm M`")

    def clock(self, now_s: float) -> Finding:
        """Boards without a battery start in the past; nothing breaks, but logs mislead and TLS fails."""
        what = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now_s))
        if now_s >= OLDEST_DATE:
            return Finding("clock", "ok", what)
        return Finding(
            "clock", "warn", f"{what} has passed already", "start a time service: `timedatectl set-ntp true`"
        )

    def kernel(self) -> Finding:
        release = (self.proc / "sys/kernel/osrelease").read_text().strip()
        numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
        if numbers < KERNEL_FLOOR:
            return Finding("kernel", "FAIL", release, "use Linux 5.10 or newer")
        if not (self.proc / "pressure/memory").exists():
            mend = "boot with `psi=1` on the kernel's command line"
            return Finding("kernel", "warn", f"{release}, without memory pressure (PSI)", mend)
        return Finding("kernel", "ok", release)

    def controllers(self) -> Finding:
        """Whether cgroup v2 is there, with the controllers that hold the node to its budget."""
        try:
            have = (self.cgroup / "cgroup.controllers").read_text().split()
        except OSError:
            what = "no cgroup v2: the budget is kept by the node alone, not by the kernel"
            return Finding("cgroup", "warn", what, "boot with `systemd.unified_cgroup_hierarchy=1`")
        missing = [name for name in CONTROLLERS if name not in have]
        if not missing:
            return Finding("cgroup", "ok", ", ".join(have))
        mend = "add `cgroup_enable=memory` to the kernel's command line (/boot/firmware/cmdline.txt), and reboot"
        return Finding("cgroup", "warn", f"no controller for {', '.join(missing)}", mend)

    def memlock(self, pid: int, pinned: int) -> Finding:
        """Whether the process may lock the pinned models' bytes into memory (RLIMIT_MEMLOCK, getrlimit(2))."""
        limits = (self.proc / str(pid) / "limits").read_text()
        match = re.search(r"Max locked memory\s+(\S+)", limits)
        soft = match[1] if match else "0"
        what = f"{'unlimited' if soft == 'unlimited' else size(int(soft))}, pinned models need {size(pinned)}"
        if soft == "unlimited" or int(soft) >= pinned:
            return Finding("memlock", "ok", what)
        return Finding("memlock", "warn", what, "set `LimitMEMLOCK=infinity` in the daemon's unit")


def mosquitto(needed: bool) -> Finding:
    """Whether the broker's program is here, which a node with a managed broker starts."""
    path = shutil.which("mosquitto", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin")
    if path:
        return Finding("mosquitto", "ok", path)
    state: Literal["FAIL", "warn"] = "FAIL" if needed else "warn"
    return Finding("mosquitto", state, "not installed", "sudo apt-get install mosquitto")
