"""Tests of the archives: which of Debian's files reach the root, and the cpio, read by cpio's own rules."""

import io
import tarfile
from pathlib import Path

import pytest

from image.archive import DROPPED, cpio, merge


def base(path: Path, names: list[str]) -> Path:
    """A tar like mmdebstrap's, with a folder for each name that ends in a slash."""
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(f"./{name}")
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.uid, member.mode = 42, 0o640
            data = b"" if member.isdir() else b"debian's"
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def merged(tmp_path: Path, names: list[str], ours: dict[str, str]) -> dict[str, tuple[int, int, bytes]]:
    """What comes out: owner, mode and content by name."""
    layer, out = tmp_path / "layer", io.BytesIO()
    layer.mkdir()
    for name, text in ours.items():
        (layer / name).parent.mkdir(parents=True, exist_ok=True)
        (layer / name).write_text(text)
    merge(base(tmp_path / "base.tar", names), layer, out, ["etc/unwanted"])
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        return {
            it.name.removeprefix("./"): (it.uid, it.mode, file.read() if (file := archive.extractfile(it)) else b"")
            for it in archive
        }


def test_our_files_lie_over_debian_s(tmp_path: Path) -> None:
    """A file of ours takes the place of one of the same name; owners and modes of the others stay."""
    found = merged(tmp_path, ["etc/", "etc/a", "etc/b", "etc/unwanted"], {"etc/a": "ours", "opt/new": "ours"})
    assert found["etc/a"] == (0, 0o644, b"ours")
    assert found["etc/b"] == (42, 0o640, b"debian's")
    assert found["etc"] == (42, 0o640, b"")
    assert found["opt/new"] == (0, 0o644, b"ours")
    assert "etc/unwanted" not in found


@pytest.mark.parametrize(
    "name",
    [
        "etc/machine-id", "etc/hostname", "etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_rsa_key.pub", "etc/shadow-",
        "etc/resolv.conf", "etc/apt/sources.list", "var/lib/dbus/machine-id", "var/log/dpkg.log", "var/cache/apt/x",
        "boot/initrd.img-7", "raspi-firmware/x", "usr/lib/modules/7/dtb/x.dtb", "usr/lib/modules/7/vmlinuz", "tmp/x",
    ],
)  # fmt: skip
def test_what_is_a_machine_s_own_or_its_builder_s_is_dropped(tmp_path: Path, name: str) -> None:
    """No identity, no key, no mirror, no log."""
    assert name not in merged(tmp_path, [name], {})


@pytest.mark.parametrize("name", ["etc/ssh/sshd_config", "etc/shadow", "usr/lib/modules/7/modules.dep", "boot", "tmp"])
def test_what_looks_like_it_stays(name: str) -> None:
    """The folders themselves, and files beside the dropped ones."""
    assert DROPPED.fullmatch(f"./{name}") is None


def test_the_cpio_is_what_the_kernel_reads() -> None:
    """newc: a head of 110 characters, name and data padded to 4 bytes, folders before what is in them, a trailer."""
    data = cpio("scripts/late", [("x", b"#!/bin/sh\n")])
    entries, at = {}, 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        start = at + (110 + fields[11] + 3) // 4 * 4
        entries[name] = (fields[1], data[start : start + fields[6]])
        at = start + (fields[6] + 3) // 4 * 4
    assert list(entries.items()) == [
        ("scripts", (0o40755, b"")),
        ("scripts/late", (0o40755, b"")),
        ("scripts/late/x", (0o100755, b"#!/bin/sh\n")),
        ("TRAILER!!!", (0, b"")),
    ]
