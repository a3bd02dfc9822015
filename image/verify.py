"""What must hold of a card that was built: all that it names is there, and nothing in it is one machine's own."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from image import ROOT, boot, disk

NAMING: Final = ("kernel", "initramfs", "cmdline", "device_tree")  # settings of config.txt that name a file
PRIVATE: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
FORBIDDEN: Final = re.compile(
    r"etc/ssh/(ssh_host_.*|authorized_keys\.d/.*)|etc/mosquitto/(passwd|acl)|etc/llmasos/.*|.*/id_(rsa|ed25519)"
)
ACCOUNT: Final = re.compile(r"[^:]+:[!*][^:]*:")  # of /etc/shadow: locked, or without any password
NEEDED: Final = (
    "opt/llmasos/bin/llmasosd",
    "usr/bin/mosquitto_passwd",
    "usr/lib/systemd/system/llmasosd.service",
    "usr/sbin/sshd",
)


def verify(image: Path, board: str) -> None:
    """Exits with all that is wrong with a card's image."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "p1", Path(folder) / "p2"
        first.mkdir()
        offset = disk.STARTS[0] * disk.MIB
        subprocess.run(["mcopy", "-s", "-Q", "-i", f"{image}@@{offset}", "::*", first], check=True)
        flags = ["-quiet", "-no-progress", "-offset", str(disk.STARTS[1] * disk.MIB)]
        subprocess.run(["unsquashfs", *flags, "-d", second, image], check=True)
        wrong = [*boot_mistakes(first, board), *root_mistakes(second, ROOT)]
    if wrong:
        sys.exit("\n".join([f"image: {image.name} is not right:", *wrong]))


def boot_mistakes(folder: Path, board: str) -> Iterator[str]:
    """What is wrong with the files of a boot partition."""
    slot = folder / boot.SLOT
    for name in ("vmlinuz", "initrd.img", "cmdline.txt", *boot.TREES[board]):
        if not (slot / name).is_file():
            yield f"{boot.SLOT}/{name} is missing"
    config = folder / "config.txt"
    for name in named_files(config.read_text()) if config.exists() else ():
        if not (folder / name).is_file():
            yield f"config.txt names {name}, which is missing"
    line = (slot / "cmdline.txt").read_text() if (slot / "cmdline.txt").exists() else ""
    if f"root=PARTUUID={disk.root_partuuid('a')} " not in line or "/dev/" in line:
        yield f"the command line does not find the root by its id: {line.strip()}"
    yield from _secrets(folder)


def named_files(config: str) -> list[str]:
    """The files that a config.txt names, with their prefix."""
    lines = [line.split("#")[0].strip() for line in config.splitlines()]
    settings = [re.split(r"[= ]", line, maxsplit=1) for line in lines if re.match(r"\w+[= ]\S", line)]
    prefix = next((value for key, value in settings if key == "os_prefix"), "")
    return [prefix + value.split()[0] for key, value in settings if key in NAMING]


def root_mistakes(root: Path, builder: Path) -> Iterator[str]:
    """What is wrong with an unpacked root: a machine's own files, passwords, and folders of the builder's machine."""
    for name in NEEDED:
        if not (root / name).is_file():
            yield f"{name} is missing"
    if (root / "etc/machine-id").read_bytes():
        yield "etc/machine-id is not empty"
    for line in (root / "etc/shadow").read_text().splitlines():
        if not ACCOUNT.match(line):
            yield f"{line.split(':')[0]} has a password, or needs none"
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if FORBIDDEN.fullmatch(name) and path.is_file():
            yield f"{name} must be made by each machine"
    yield from _secrets(root / "etc")
    yield from _names_of(builder, root / "opt")


def _secrets(folder: Path) -> Iterator[str]:
    for path in _files(folder):
        if PRIVATE.search(path.read_bytes()):
            yield f"{path.relative_to(folder)} has a private key"


def _names_of(builder: Path, folder: Path) -> Iterator[str]:
    for path in _files(folder):
        if bytes(builder) in path.read_bytes():
            yield f"{path.relative_to(folder)} names {builder}, a folder of the machine that built it"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
