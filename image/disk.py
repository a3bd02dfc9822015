"""The card: its partition table, its file systems, and one sparse file of them, without loop devices."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from image import EPOCH
from image.steps import run

MIB: Final = 2**20
DISK_ID: Final = "4c4c4d53"  # "LLMS": what PARTUUID= of the command lines begins with
BOOT_LABEL: Final = "LLMASOS"
DATA_LABEL: Final = "llmasos-data"
DATA_UUID: Final = "4c4c4d53-6461-4174-8a00-000000000004"
FIRST_MIB: Final = 4
BOOT_MIB: Final = 512
ROOT_MIB: Final = 768  # each of the two: three times what a root has now
DATA_MIB: Final = 384  # grown at first boot
STARTS: Final = (FIRST_MIB, FIRST_MIB + BOOT_MIB, FIRST_MIB + BOOT_MIB + ROOT_MIB, FIRST_MIB + BOOT_MIB + 2 * ROOT_MIB)
SIZE: Final = (STARTS[3] + DATA_MIB) * MIB


def table() -> str:
    """What sfdisk is told: MBR, since boards before the Pi 5 read nothing else."""
    sizes, kinds = (BOOT_MIB, ROOT_MIB, ROOT_MIB, DATA_MIB), ("c, bootable", "83", "83", "83")
    lines = [f"start={at}MiB, size={size}MiB, type={kind}" for at, size, kind in zip(STARTS, sizes, kinds, strict=True)]
    return "\n".join(["label: dos", f"label-id: 0x{DISK_ID}", *lines, ""])


def root_partuuid(slot: str) -> str:
    """How a command line names the root of a slot, `a` or `b`: the same on every card, whatever it is plugged into."""
    return f"{DISK_ID}-{2 + 'ab'.index(slot):02}"


def make_fat(source: Path, target: Path, log: Path) -> None:
    """p1 with what is in a folder."""
    for path in source.rglob("*"):
        os.utime(path, (EPOCH, EPOCH))
    target.unlink(missing_ok=True)
    size_kib = str(BOOT_MIB * 1024)
    options = ["-F", "32", "-n", BOOT_LABEL, "--invariant"]
    run(["mkfs.vfat", *options, "-C", target, size_kib], log)
    run(["mcopy", "-s", "-m", "-i", target, *sorted(source.iterdir()), "::"], log)


def make_ext4(source: Path, target: Path, log: Path) -> None:
    """p4 with what is in a folder; it can grow to the size of any card."""
    target.unlink(missing_ok=True)
    options = ["-b", "4096", "-i", "16384", "-J", "size=16", "-m", "1", "-O", "metadata_csum,64bit"]
    fixed = ["-U", DATA_UUID, "-E", f"hash_seed={DATA_UUID},lazy_itable_init=0,lazy_journal_init=0"]
    command = ["mke2fs", "-t", "ext4", "-L", DATA_LABEL, *options, *fixed, "-d", source, target, f"{DATA_MIB}M"]
    run(command, log, extra={"E2FSPROGS_FAKE_TIME": str(EPOCH)})


def assemble(target: Path, parts: Sequence[Path | None], log: Path) -> None:
    """The card: the table, and each partition's content in its place (None: empty)."""
    with target.open("wb") as disk:
        disk.truncate(SIZE)
    run(["sfdisk", "--quiet", target], log, text=table())
    with target.open("r+b") as disk:
        for at, part in zip(STARTS, parts, strict=True):
            if part is not None:
                _copy_sparse(part, disk.fileno(), at * MIB)


def _copy_sparse(source: Path, target: int, offset: int) -> None:
    """Blocks of zeros are left out: the file has them already."""
    zeros = bytes(MIB)
    with source.open("rb") as file:
        while block := file.read(MIB):
            if block != zeros[: len(block)]:
                os.pwrite(target, block, offset)
            offset += len(block)
