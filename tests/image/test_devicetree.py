"""Tests of device trees: the names in a tree, and the modules that they ask for."""

import struct
from pathlib import Path

import pytest

from image.devicetree import compatible, drivers, early, write_modules

ALIASES = """\
alias of:N*T*Cbrcm,bcm2711-emmc2 sdhci_iproc
alias of:N*T*Cbrcm,bcm2711-emmc2C* sdhci_iproc
alias of:N*T*Cbrcm,bcm2711-genet-v5C* genet
alias pci:v000014E4d00002711sv*sd*bc*sc*i* pcie_brcmstb
"""
DEPENDENCIES = """\
kernel/drivers/mmc/host/sdhci-iproc.ko.xz: kernel/drivers/mmc/host/sdhci.ko.xz
kernel/drivers/net/ethernet/broadcom/genet/genet.ko.xz:
"""


def tree(*names: str) -> bytes:
    """A flattened tree: a root with one node for each name."""
    strings = b"compatible\0model\0"

    def value(offset: int, data: bytes) -> bytes:
        return struct.pack(">3I", 3, len(data), offset) + data + bytes(-len(data) % 4)

    nodes = b"".join(
        struct.pack(">I", 1) + b"node@1\0\0" + value(0, f"{name}\0other\0".encode()) + struct.pack(">I", 2)
        for name in names
    )
    body = struct.pack(">I", 1) + bytes(4) + value(11, b"A board\0") + nodes + struct.pack(">3I", 2, 4, 9)
    return struct.pack(">4I", 0xD00DFEED, 0, 40, 40 + len(body)) + bytes(24) + body + strings


def test_the_names_in_a_tree() -> None:
    """All of every node, and no other property."""
    assert compatible(tree("brcm,bcm2711-emmc2", "x,y")) == {"brcm,bcm2711-emmc2", "x,y", "other"}


def test_what_is_no_tree_is_refused() -> None:
    """A package that has something else under the name is noticed."""
    with pytest.raises(ValueError, match="not a flattened device tree"):
        compatible(bytes(64))


def test_the_drivers_of_names() -> None:
    """By the kernel's own table, whatever follows the name in it."""
    assert drivers(["brcm,bcm2711-emmc2", "brcm,bcm2711-genet-v5", "nobody,knows"], ALIASES) == {"sdhci_iproc", "genet"}


def test_networks_come_after_the_root() -> None:
    """Names of modules have underscores, whatever their files have."""
    assert early(DEPENDENCIES) == {"sdhci_iproc"}


def test_the_initramfs_s_modules(tmp_path: Path) -> None:
    """What the trees ask for, what virtual machines need, and the root's own: squashfs, overlay, ext4."""
    kernel = tmp_path / "usr/lib/modules/7.0"
    (kernel / "dtb/broadcom").mkdir(parents=True)
    (tmp_path / "etc/initramfs-tools/conf.d").mkdir(parents=True)
    (kernel / "dtb/broadcom/a.dtb").write_bytes(tree("brcm,bcm2711-emmc2", "brcm,bcm2711-genet-v5"))
    (kernel / "modules.alias").write_text(ALIASES)
    (kernel / "modules.dep").write_text(DEPENDENCIES)
    write_modules(tmp_path, ["a.dtb"])
    written = set((tmp_path / "etc/initramfs-tools/modules").read_text().split())
    assert {"sdhci_iproc", "squashfs", "overlay", "ext4", "virtio_blk"} <= written
    assert "genet" not in written
