"""Device trees: which drivers a board's tree asks for, so that the initramfs has them (Devicetree Specification, 5)."""

import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

MAGIC: Final = 0xD00DFEED
BEGIN_NODE, PROPERTY, END = 1, 3, 9

# What a board needs until its root is mounted; sound, pictures and networks come after that.
LATER: Final = re.compile(r"kernel/(sound|net|drivers/(accel|gpu|iio|input|leds|media|net|staging|video))/")
ALWAYS: Final = {"ext4", "nvme", "overlay", "sd_mod", "squashfs", "uas", "usb_storage", "xhci_pci"}
VIRTUAL: Final = {"virtio_blk", "virtio_mmio", "virtio_pci"}


def compatible(tree: bytes) -> set[str]:
    """Every `compatible` name in a flattened tree. ValueError if it is none."""
    magic, _, structure, strings = struct.unpack_from(">4I", tree)
    if magic != MAGIC:
        raise ValueError("not a flattened device tree")
    return {name for key, value in _properties(tree, structure, strings) if key == "compatible" for name in value}


def _properties(tree: bytes, at: int, strings: int) -> Iterator[tuple[str, list[str]]]:
    while True:
        (token,) = struct.unpack_from(">I", tree, at)
        at += 4
        if token == BEGIN_NODE:
            at = _aligned(tree.index(b"\0", at) + 1)
        elif token == PROPERTY:
            size, name = struct.unpack_from(">2I", tree, at)
            key = tree[strings + name : tree.index(b"\0", strings + name)].decode()
            value = tree[at + 8 : at + 8 + size]
            yield key, [it.decode(errors="replace") for it in value.split(b"\0") if it]
            at = _aligned(at + 8 + size)
        elif token == END:
            return


def _aligned(at: int) -> int:
    return (at + 3) & ~3


def drivers(names: Iterable[str], aliases: str) -> set[str]:
    """The modules of modules.alias (its text) that drive devices of these names."""
    known: dict[str, set[str]] = {}
    for name, module in re.findall(r"^alias of:N\*T\*C(\S+?)(?:C\*)? (\S+)$", aliases, re.MULTILINE):
        known.setdefault(name, set()).add(module)
    return {module.replace("-", "_") for name in names for module in known.get(name, ())}


def write_modules(root: Path, trees: Iterable[str]) -> None:
    """Tell update-initramfs which modules an initramfs needs that finds the root on boards with these trees."""
    (kernel,) = (root / "usr/lib/modules").iterdir()
    names = {name for it in trees for name in compatible((kernel / "dtb" / "broadcom" / it).read_bytes())}
    wanted = drivers(names, (kernel / "modules.alias").read_text()) & early((kernel / "modules.dep").read_text())
    settings = root / "etc/initramfs-tools"
    (settings / "modules").write_text("\n".join(sorted(ALWAYS | VIRTUAL | wanted)) + "\n")
    (settings / "conf.d" / "llmasos").write_text("MODULES=list\nCOMPRESS=zstd\n")


def early(dependencies: str) -> set[str]:
    """The modules of modules.dep (its text) that may be needed before the root is mounted."""
    paths = [line.split(":")[0] for line in dependencies.splitlines()]
    return {Path(it).name.split(".")[0].replace("-", "_") for it in paths if not LATER.match(it)}
