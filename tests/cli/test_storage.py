"""Tests of what `doctor` tells of the disk: its kind on made-up files, made-up speeds judged, a real measuring."""

import os
from pathlib import Path

import pytest

from llmasos_edge.cli import storage
from llmasos_edge.cli.storage import Speed, judge, kind_of, measure
from llmasos_edge.config.board import load_board
from llmasos_edge.resources import resource

PI_4 = load_board("raspberry-pi-4", resource("board"))
MIB = 2**20


def mounted(root: Path, disk: str, part: str = "") -> tuple[Path, Path]:
    """A /proc and a /sys in which the folder `root` is on that disk, or on that part of it."""
    number = root.stat().st_dev
    place = f"{os.major(number)}:{os.minor(number)}"
    folder = root / "sys/devices" / disk
    (folder / part).mkdir(parents=True)
    if part:
        (folder / part / "partition").touch()
    (root / "sys/dev/block").mkdir(parents=True)
    (root / "sys/dev/block" / place).symlink_to(folder / part)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(f"26 24 {place} / / rw shared:1 - tmpfs tmpfs rw\n")
    return root / "proc", root / "sys"


@pytest.mark.parametrize(
    ("disk", "part", "kind"),
    [
        ("platform/scb/fd580000.pcie/usb2/2-1/host0/block/sda", "sda1", "usb"),
        ("pci0000:00/0000:00:17.0/ata1/host0/block/sda", "", "sata"),
        ("platform/axi/1000110000.pcie/nvme/nvme0/nvme0n1", "nvme0n1p2", "nvme"),
        ("pci0000:00/0000:00:04.0/virtio1/block/vda", "vda4", "virtual"),
        ("platform/strange/block/nbd0", "", "unknown"),
    ],
)
def test_kind(tmp_path: Path, disk: str, part: str, kind: str) -> None:
    """The way to the device through the buses tells its kind, for a whole disk and for a part of it."""
    assert kind_of(tmp_path, *mounted(tmp_path, disk, part)) == kind


@pytest.mark.parametrize(("told", "kind"), [("SD", "sd"), ("MMC", "emmc"), ("SDIO", "unknown")])
def test_cards(tmp_path: Path, told: str, kind: str) -> None:
    """A card and a soldered chip have the same driver, which tells them apart."""
    places = mounted(tmp_path, "platform/soc/mmc0/block/mmcblk0", "mmcblk0p4")
    (tmp_path / "sys/devices/platform/soc/mmc0/block/mmcblk0/device").mkdir()
    (tmp_path / "sys/devices/platform/soc/mmc0/block/mmcblk0/device/type").write_text(f"{told}\n")
    assert kind_of(tmp_path, *places) == kind


def test_a_mapped_disk_is_as_the_one_below(tmp_path: Path) -> None:
    """An encrypted disk is looked through."""
    places = mounted(tmp_path, "virtual/block/dm-0")
    below = tmp_path / "sys/devices/pci0000:00/ata1/block/sda"
    below.mkdir(parents=True)
    (tmp_path / "sys/devices/virtual/block/dm-0/slaves").mkdir()
    (tmp_path / "sys/devices/virtual/block/dm-0/slaves/sda").symlink_to(below)
    assert kind_of(tmp_path, *places) == "sata"


def test_no_disk_at_all(tmp_path: Path) -> None:
    """A state in memory is told by its file system."""
    proc, _ = mounted(tmp_path, "x")
    assert kind_of(tmp_path, proc, tmp_path / "nothing") == "tmpfs"


def test_judgement() -> None:
    """A disk is ok when its kind suits the board, and it reads and commits fast enough; else a mend is told."""
    assert judge("sd", Speed(40 * MIB, 12), PI_4).what == "sd, reads 40 MiB/s, a commit takes 12.0 ms"
    assert judge("sd", Speed(None, 12), PI_4).state == "ok"
    for kind, speed, mend in (
        ("sd", Speed(8 * MIB, 12), "20 MiB/s is usual for sd"),
        ("sd", Speed(40 * MIB, 240), "class A2"),
        ("tmpfs", Speed(None, 0), "outlives a power cut: sd, emmc, usb"),
        ("sd", None, "sudo llmasos doctor"),
    ):
        finding = judge(kind, speed, PI_4)
        assert finding.state == "warn"
        assert mend in finding.mend


def test_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest file is read up to its end, or as far as the time goes; commits are timed, and nothing is left."""
    ticks = iter(range(100))
    monkeypatch.setattr(storage, "READ_AT_LEAST", 2 * storage.BLOCK)
    (tmp_path / "small").write_bytes(bytes(100))
    assert measure(tmp_path, lambda: next(ticks)) == Speed(None, 1000)
    (tmp_path / "m.gguf").write_bytes(bytes(2 * storage.BLOCK))
    ticks = iter(range(100))
    assert measure(tmp_path, lambda: next(ticks)) == Speed(storage.BLOCK / 3, 1000)
    assert sorted(it.name for it in tmp_path.iterdir()) == ["m.gguf", "small"]


def test_measure_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not write there is told so, not shown an error."""

    def refuse(folder: Path, clock_s: object) -> float:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(storage, "_commit_ms", refuse)
    assert measure(tmp_path) is None


def test_every_kind_of_a_board_file_can_be_found() -> None:
    """What boards expect and what is found have the same words."""
    boards = [load_board(file.stem, resource("board")) for file in resource("board").glob("*.yaml")]
    kinds = {kind for board in boards for kind in board.storage_read_per_s}
    assert kinds == {"sd", "emmc", "nvme", "usb", "sata", "virtual"}
