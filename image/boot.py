"""The boot partition: kernel, initramfs and device trees in slot-a/, and what else a family of boards needs."""

import re
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from image.archive import cpio
from image.disk import root_partuuid

HERE: Final = Path(__file__).parent
SLOT: Final = "slot-a"
CONSOLES: Final = {"generic": "console=ttyAMA0", "raspberry-pi": "console=serial0,115200 console=tty1"}
# Trees by the names that a board's firmware looks for, and what the kernel's package calls them.
TREES: Final[Mapping[str, Mapping[str, str]]] = {
    "generic": {},  # the emulator brings its own
    "raspberry-pi": {
        "bcm2711-rpi-4-b.dtb": "bcm2711-rpi-4-b.dtb",
        "bcm2712-rpi-5-b.dtb": "bcm2712-rpi-5-b.dtb",
        "bcm2712d0-rpi-5-b.dtb": "bcm2712-d-rpi-5-b.dtb",  # the Pi 5's later stepping
        "bcm2837-rpi-zero-2-w.dtb": "bcm2837-rpi-zero-2-w.dtb",
    },
}
# Of the boards' own firmware: the Pi 4's, the Zero 2 W's with its first stage; a Pi 5 has its in flash memory.
FIRMWARE: Final = ("bootcode.bin", "fixup.dat", "fixup4.dat", "start.elf", "start4.elf")


def command_line(board: str) -> str:
    """What the kernel is told: no device of any machine, only what is written into the card."""
    root = f"root=PARTUUID={root_partuuid('a')} rootfstype=squashfs ro rootwait"
    return f"{root} {CONSOLES[board]} panic=10 quiet systemd.ssh_auto=no\n"


def fill(board: str, base: Path, target: Path) -> None:
    """Everything that is on p1 of a board's card, taken from `base`, Debian's tar."""
    slot = target / SLOT
    slot.mkdir(parents=True)
    with tarfile.open(base) as archive:
        found = _pick(archive, board)
    kernel, initramfs = found.pop("vmlinuz"), found.pop("initrd.img")
    (slot / "vmlinuz").write_bytes(kernel)
    (slot / "initrd.img").write_bytes(initramfs + bytes(-len(initramfs) % 4) + _addition())
    (slot / "cmdline.txt").write_text(command_line(board))
    for name, data in found.items():
        (slot if name.endswith(".dtb") else target).joinpath(name).write_bytes(data)
    shutil.copyfile(HERE / "llmasos.yaml", target / "llmasos.yaml")
    for file in sorted((HERE / "boards" / board).glob("*")):
        shutil.copyfile(file, target / file.name)


def _pick(archive: tarfile.TarFile, board: str) -> dict[str, bytes]:
    """The members of Debian's tar that are wanted, by the names they get."""
    wanted = {r"\./boot/vmlinuz-[^/]+": "vmlinuz", r"\./boot/initrd\.img-[^/]+": "initrd.img"}
    for name, own in TREES[board].items():
        wanted[rf"\./usr/lib/modules/[^/]+/dtb/broadcom/{re.escape(own)}"] = name
    for name in FIRMWARE if board == "raspberry-pi" else ():
        wanted[rf"\./raspi-firmware/usr/lib/raspi-firmware/{re.escape(name)}"] = name
    found = {}
    for member in archive:
        for pattern, name in wanted.items():
            if re.fullmatch(pattern, member.name) and (file := archive.extractfile(member)) is not None:
                found[name] = file.read()
    if missing := set(wanted.values()) - found.keys():
        raise SystemExit(f"image: Debian's packages do not have {', '.join(sorted(missing))}")
    return found


def _addition() -> bytes:
    """Our script for the initramfs, and the list of those that run when the root is mounted."""
    script = (HERE / "initramfs" / "llmasos").read_bytes()
    order = b'/scripts/local-bottom/llmasos "$@"\n[ -e /conf/param.conf ] && . /conf/param.conf\n'
    return cpio("scripts/local-bottom", [("llmasos", script), ("ORDER", order)])
