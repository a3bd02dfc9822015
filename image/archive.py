"""Archives: the root's tar, Debian's with our own files on top, and the cpio that is added to Debian's initramfs."""

import re
import stat
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Final

from image import EPOCH

# Of what Debian's packages leave: what a read-only system never uses, what tells about the builder, and what must be
# each machine's own.
DROPPED: Final = re.compile(
    r"\./("
    r"(boot|dev|etc/apt|raspi-firmware|tmp|var/cache|var/lib/apt|var/log|var/tmp)/.+"
    r"|usr/lib/modules/[^/]+/(dtb|vmlinuz|System\.map|config)(/.*)?"
    r"|(vmlinuz|initrd\.img)(\.old)?"
    r"|etc/(hostname|hosts|machine-id|resolv\.conf|fstab|ssh/ssh_host_.+|(passwd|group|shadow|gshadow|subuid|subgid)-)"
    r"|var/lib/dbus/machine-id"
    r")"
)
MODE_FILE, MODE_PROGRAM, MODE_FOLDER = 0o644, 0o755, 0o755


def merge(base: Path, layer: Path, out: IO[bytes], dropped: Iterable[str] = ()) -> None:
    """Write `base`, less what is dropped, with the files of `layer` added or in place of its own; these are root's."""
    ours = {f"./{path.relative_to(layer)}": path for path in sorted(layer.rglob("*"))}
    gone = {f"./{it}" for it in dropped}
    folders = set()
    with tarfile.open(base) as source, tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as target:
        for member in source:
            name = member.name.rstrip("/")
            if member.isdir():
                folders.add(name)
            elif name in ours:
                continue
            if name not in {*gone, "."} and not DROPPED.fullmatch(name):
                target.addfile(member, source.extractfile(member) if member.isreg() else None)
        for name, path in ours.items():
            if name not in folders:
                _add(target, name, path)


def _add(target: tarfile.TarFile, name: str, path: Path) -> None:
    member = target.gettarinfo(path, name)
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mtime = EPOCH
    if not member.isreg():
        member.mode = MODE_FOLDER
        target.addfile(member)
        return
    member.mode = MODE_PROGRAM if member.mode & 0o100 else MODE_FILE
    with path.open("rb") as file:
        target.addfile(member, file)


def cpio(folder: str, files: Iterable[tuple[str, bytes]]) -> bytes:
    """Programs in a folder, as an archive that the kernel unpacks after the initramfs it is appended to."""
    parents = [str(it) for it in reversed([PurePosixPath(folder), *PurePosixPath(folder).parents][:-1])]
    entries = [(it, MODE_FOLDER | stat.S_IFDIR, b"") for it in parents]  # the kernel makes none by itself
    entries += [(f"{folder}/{name}", MODE_PROGRAM | stat.S_IFREG, data) for name, data in files]
    return b"".join(_entry(inode, *entry) for inode, entry in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1))


def _entry(inode: int, name: str, mode: int, data: bytes) -> bytes:
    numbers = (inode, mode, 0, 0, 1, EPOCH, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % it for it in numbers) + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
