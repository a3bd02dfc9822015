"""What `doctor` finds out about the machine under a node: is it as its board should be, and can a node work on it."""

import ctypes
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmasos_edge.cli.render import size
from llmasos_edge.config.board import Board

MIB = 2**20
RAM_SEEN = 0.75  # firmware, GPU and kernel keep some of the RAM that a board is sold with, a quarter at the very most
DISK_FLOOR = 512 * MIB
KERNEL_FLOOR = (5, 10)
OLDEST_DATE = 1_767_225_600  # 2026-01-01: this program did not exist before
CONTROLLERS = ("cpu", "memory")
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


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
    sys: Path = Path("/sys")

    def ram(self, board: Board) -> Finding:
        """Whether Linux has about as much memory as one of the sizes that the board is sold with."""
        match = re.search(r"MemTotal:\s+(\d+) kB", (self.proc / "meminfo").read_text())
        total = int(match[1]) * 1024 if match else 0
        sizes = ", ".join(size(each) for each in board.ram)
        if not board.ram or total > max(board.ram) or any(RAM_SEEN * each <= total <= each for each in board.ram):
            return Finding("ram", "ok", size(total))
        mend = "look for `mem=`, `total_mem=` or `gpu_mem=` in the kernel's command line and in config.txt"
        return Finding("ram", "warn", f"{size(total)}, but such a board has {sizes}", mend)

    def cores(self, board: Board) -> Finding:
        """Whether all cores of the board are at work."""
        spans = re.findall(r"(\d+)(?:-(\d+))?", (self.sys / "devices/system/cpu/online").read_text())
        online = sum(int(last or first) - int(first) + 1 for first, last in spans)
        if board.cores is None or online >= board.cores:
            return Finding("cores", "ok", str(online))
        mend = (
            "take `maxcpus=` off the kernel's command line; on a Jetson choose a power mode with all: `nvpmodel -m 0`"
        )
        return Finding("cores", "warn", f"{online} of {board.cores} are online", mend)

    def temperature(self, board: Board) -> Finding:
        """How hot it is, and whether the kernel slows the processor down because of that."""
        zones = self._zones()
        lost = [name for name in board.thermal_zones if name not in zones]
        what = ", ".join(f"{name} {degrees:.0f} C" for name, degrees in sorted(zones.items())) or "no sensors"
        hot = f"heat sink, fan, or shade: from {board.throttles_at_c} C on it is slowed down"
        if self._slowed():
            return Finding("heat", "warn", f"{what}: the processor is slowed down now", hot)
        if any(degrees >= board.throttles_at_c for degrees in zones.values()):
            return Finding("heat", "warn", what, hot)
        if lost:
            mend = "cool it well, for nobody watches; a kernel whose device tree has it would (that of Raspberry Pi OS)"
            return Finding("heat", "warn", f"{what}; the kernel has no thermal zone {', '.join(lost)}", mend)
        return Finding("heat", "ok", what)

    def _zones(self) -> dict[str, float]:
        """The thermal zones' temperatures (the kernel's thermal/sysfs-api); one that is switched off has none."""
        found = {}
        for zone in self.sys.glob("class/thermal/thermal_zone*"):
            try:
                found[(zone / "type").read_text().strip()] = int((zone / "temp").read_text()) / 1000
            except (OSError, ValueError):
                continue
        return found

    def _slowed(self) -> bool:
        return any(
            re.match("(thermal-)?cpufreq|Processor", (device / "type").read_text())
            and int((device / "cur_state").read_text())
            for device in self.sys.glob("class/thermal/cooling_device*")
        )

    def power(self) -> Finding | None:
        """Whether a Raspberry Pi's firmware complains about its supply (raspberrypi-hwmon); None on other boards."""
        for sensor in self.sys.glob("class/hwmon/hwmon*"):
            if (sensor / "name").read_text().strip() == "rpi_volt":
                if (sensor / "in0_lcrit_alarm").read_text().strip() == "0":
                    return Finding("power", "ok", "no under-voltage")
                mend = "use the board's own power supply, and a short cable"
                return Finding("power", "warn", "under-voltage: the board slows down, and may lose data", mend)
        return None

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

    def clock(self, now_s: float, synchronised: bool) -> Finding:
        """Boards without a battery start in the past; nothing breaks, but logs mislead and TLS fails."""
        what = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now_s))
        if not any(self.sys.glob("class/rtc/rtc*")):
            what += ", no clock chip that runs while the power is off"
        if now_s >= OLDEST_DATE and synchronised:
            return Finding("clock", "ok", f"{what}, synchronised")
        what += ", has passed already" if now_s < OLDEST_DATE else ", not synchronised"
        return Finding("clock", "warn", what, "start a time service: `timedatectl set-ntp true`")

    def kernel(self, board: Board) -> Finding:
        """Old ones fail; another flavour than that of the board's image is told, and is no fault."""
        release = (self.proc / "sys/kernel/osrelease").read_text().strip()
        numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
        if numbers < KERNEL_FLOOR:
            return Finding("kernel", "FAIL", release, "use Linux 5.10 or newer")
        if board.kernel and not release.endswith(board.kernel.removeprefix("linux-image")):
            release += f", not of the image's {board.kernel}"
        if not (self.proc / "pressure/memory").exists():
            mend = "boot with `psi=1` on the kernel's command line"
            return Finding("kernel", "warn", f"{release}, without memory pressure (PSI)", mend)
        return Finding("kernel", "ok", release)

    def controllers(self) -> Finding:
        """Whether cgroup v2 is there, with the controllers that hold the node to its budget."""
        try:
            have = (self.sys / "fs/cgroup/cgroup.controllers").read_text().split()
        except OSError:
            what = "no cgroup v2: the budget is kept by the node alone, not by the kernel"
            return Finding("cgroup", "warn", what, "boot with `systemd.unified_cgroup_hierarchy=1`")
        missing = [name for name in CONTROLLERS if name not in have]
        if not missing:
            return Finding("cgroup", "ok", ", ".join(have))
        mend = "add `cgroup_enable=memory` to the kernel's command line (on a Raspberry Pi cmdline.txt), and reboot"
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


def synchronised() -> bool:
    """Whether the kernel says that something keeps its clock right (adjtimex(2) with nothing to change)."""
    question = ctypes.create_string_buffer(512)  # a struct timex, which is smaller, with `modes` 0
    return int(ctypes.CDLL(None).adjtimex(question)) != TIME_ERROR


def mosquitto(needed: bool) -> Finding:
    """Whether the broker's program is here, which a node with a managed broker starts."""
    path = shutil.which("mosquitto", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin")
    if path:
        return Finding("mosquitto", "ok", path)
    state: Literal["FAIL", "warn"] = "FAIL" if needed else "warn"
    return Finding("mosquitto", state, "not installed", "sudo apt-get install mosquitto")
