"""The machine that first boot works on: its files and its commands; a test has a folder and commands of its own."""

import contextlib
import grp
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from llmasos_edge.errors import Internal
from llmasos_edge.firstboot.settings import PRIVATE, File

Run = Callable[[Sequence[str], str], None]  # a command, and what it reads; raises Internal with what it said
COMMAND_S: Final = 300.0
FOLDER_MODE: Final = 0o755


def run(command: Sequence[str], text: str) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    if done.returncode:
        raise Internal(f"{command[0]} failed ({done.returncode}): {done.stderr.strip()[-300:]}")


class Machine:
    """`root` is where /etc is, `boot` the mounted FAT partition, `state` the folder that tells what was applied."""

    def __init__(self, root: Path, boot: Path, state: Path, command: Run = run) -> None:
        self.root, self.boot, self.state = root, boot, state
        self._run = command

    def write(self, files: Iterable[File]) -> None:
        """Each file whole or not at all, and durable: the power may go at any time."""
        for file in files:
            path = self.root / file.path
            if file.text is None:
                path.unlink(missing_ok=True)
                continue
            _make_folders(path.parent)
            part = path.with_name(f".{path.name}.part")
            part.unlink(missing_ok=True)
            part.touch(mode=PRIVATE)
            with part.open("w") as target:
                target.write(file.text)
                target.flush()
                os.fchown(target.fileno(), -1, _group(file.group))
                os.fchmod(target.fileno(), file.mode)
                os.fsync(target.fileno())
            part.rename(path)

    def hash_passwords(self, path: str) -> None:
        """What a password file of mosquitto holds as text becomes hashes, in place."""
        self._run(["mosquitto_passwd", "-U", str(self.root / path)], "")

    def take_hostname(self, name: str) -> None:
        self._run(["hostname", name], "")

    def make_host_key(self) -> None:
        path = self.root / "etc/ssh/ssh_host_ed25519_key"
        if not path.exists():
            _make_folders(path.parent)
            self._run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], "")

    def grow_data(self, device: Path) -> None:
        """The last partition and its file system take what the card has left. Both can be done again at any time."""
        partition = device.resolve()
        entry = Path("/sys/class/block", partition.name).resolve()
        number, disk = (entry / "partition").read_text().strip(), f"/dev/{entry.parent.name}"
        self._run(["sfdisk", "--quiet", "--no-reread", "--force", "-N", number, disk], ", +\n")
        self._run(["partx", "--update", "--nr", number, disk], "")
        self._run(["resize2fs", str(partition)], "")

    @contextlib.contextmanager
    def writable_boot(self) -> Iterator[Path]:
        """The FAT partition, mounted for writing only as long as it must be: a power cut does it no good."""
        self._run(["mount", "-o", "remount,rw", str(self.boot)], "")
        try:
            yield self.boot
        finally:
            os.sync()
            self._run(["mount", "-o", "remount,ro", str(self.boot)], "")


def _make_folders(path: Path) -> None:
    for folder in reversed([path, *path.parents]):
        if not folder.exists():
            folder.mkdir()
            folder.chmod(FOLDER_MODE)


def _group(name: str) -> int:
    """The group's id; where there is none of that name (a test's machine), the file keeps its maker's."""
    try:
        return grp.getgrnam(name).gr_gid if os.geteuid() == 0 else -1
    except KeyError:
        return -1
