"""The disk under a node's state, as `doctor` sees it: what kind it is, how fast it reads, how long a commit takes."""

import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmasos_edge.cli.host import MIB, Finding
from llmasos_edge.cli.render import size
from llmasos_edge.config.board import Board

BLOCK = 4 * MIB
READ_AT_MOST = 64 * MIB
READ_AT_MOST_S = 2.0
READ_AT_LEAST = 8 * MIB  # a shorter read says little
COMMITS = 5
COMMIT_SLOW_MS = 100.0  # every accepted request waits for one


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured; `read_per_s` in bytes, None where there is no file that is large enough."""

    read_per_s: float | None
    commit_ms: float


def judge(kind: str, speed: Speed | None, board: Board) -> Finding:
    """The disk against what the board should have; `speed` is None where nobody may measure it."""
    if speed is None:
        return Finding("storage", "warn", f"{kind}, not measured: no permission", "ask as root: `sudo llmasos doctor`")
    read = "nothing large to read yet" if speed.read_per_s is None else f"reads {size(speed.read_per_s)}/s"
    what = f"{kind}, {read}, a commit takes {speed.commit_ms:.1f} ms"
    least = board.storage_read_per_s.get(kind)
    if least is None:
        kinds = ", ".join(board.storage_read_per_s)
        return Finding("storage", "warn", what, f"keep the state on a disk that outlives a power cut: {kinds}")
    if speed.read_per_s is not None and speed.read_per_s < least:
        mend = f"{size(least)}/s is usual for {kind} here: a better one, and an old card or cable replaced"
        return Finding("storage", "warn", what, mend)
    if speed.commit_ms > COMMIT_SLOW_MS:
        mend = "every request waits for a commit: a card of class A2, or an SSD; see what else writes (`iotop`)"
        return Finding("storage", "warn", what, mend)
    return Finding("storage", "ok", what)


def kind_of(folder: Path, proc: Path, sys: Path) -> str:
    """`sd`, `emmc`, `nvme`, `usb`, `sata` or `virtual`; else the type of the file system, `tmpfs` for one."""
    number = folder.stat().st_dev
    place = f"{os.major(number)}:{os.minor(number)}"
    disk = (sys / "dev/block" / place).resolve()
    if not disk.exists():
        mounts = (line.split() for line in (proc / "self/mountinfo").read_text().splitlines())
        return next((words[words.index("-") + 1] for words in mounts if words[2] == place), "unknown")
    return _kind(disk.parent if (disk / "partition").exists() else disk)


def _kind(disk: Path) -> str:
    below = next(disk.glob("slaves/*"), None)
    if below is not None:  # a mapped disk, such as an encrypted one, is as the disk below it
        return _kind(below.resolve())
    if disk.name.startswith("mmcblk"):
        return {"SD": "sd", "MMC": "emmc"}.get((disk / "device/type").read_text().strip(), "unknown")
    for start, kind in (("nvme", "nvme"), ("usb", "usb"), ("ata", "sata"), ("virtio", "virtual")):
        if any(part.startswith(start) for part in disk.parts):
            return kind
    return "unknown"


def measure(folder: Path, clock_s: Callable[[], float] = time.perf_counter) -> Speed | None:
    """Read from the largest file in the folder, and commit a few small writes; None without the permission to."""
    try:
        return Speed(_read_per_s(folder, clock_s), _commit_ms(folder, clock_s))
    except PermissionError:
        return None


def _read_per_s(folder: Path, clock_s: Callable[[], float]) -> float | None:
    """Bounded in bytes and time, and past the page cache, which would tell its own speed (O_DIRECT, open(2))."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size >= READ_AT_LEAST]
    if not files:
        return None
    largest = max(files, key=lambda path: path.stat().st_size)
    try:
        file = os.open(largest, os.O_RDONLY | os.O_DIRECT)
    except PermissionError:
        raise
    except OSError:  # a file system in memory
        return None
    done, start = 0, clock_s()
    try:
        with mmap.mmap(-1, BLOCK) as buffer:  # of whole pages, as O_DIRECT wants them
            while done < READ_AT_MOST and clock_s() - start < READ_AT_MOST_S:
                if (count := os.readv(file, [buffer])) == 0:
                    break
                done += count
    finally:
        os.close(file)
    return done / (clock_s() - start)


def _commit_ms(folder: Path, clock_s: Callable[[], float]) -> float:
    """The median of a few small durable writes."""
    times = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
        for _ in range(COMMITS):
            start = clock_s()
            probe.write(bytes(4096))
            os.fsync(probe.fileno())
            times.append(clock_s() - start)
    return statistics.median(times) * 1000
