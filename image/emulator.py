"""A card in an emulated board: QEMU's `-M virt`, started with what the card's own boot partition holds."""

import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from image import disk
from image.boot import SLOT

CARD_BYTES: Final = 4 * 2**30  # larger than the image, as a card is: first boot has something to grow into
FAT_OFFSET: Final = f"@@{disk.FIRST_MIB}M"
LOOPBACK: Final = "127.0.0.1"
STOP_S: Final = 10.0


class Card:
    """A copy of an image, in a folder of its own: the image stays as it was built."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.path = folder / "card.img"
        subprocess.run(["cp", "--sparse=always", image, self.path], check=True)
        with self.path.open("r+b") as file:
            file.truncate(CARD_BYTES)

    def read(self, name: str) -> bytes | None:
        """A file of the FAT partition, as a card reader has it; None if it is not there."""
        command = ["mtype", "-i", f"{self.path}{FAT_OFFSET}", f"::{name}"]
        done = subprocess.run(command, capture_output=True, check=False)
        return done.stdout if done.returncode == 0 else None

    def write(self, name: str, text: str) -> None:
        """Put a file on the FAT partition. Not while the machine runs."""
        command = ["mcopy", "-o", "-i", f"{self.path}{FAT_OFFSET}", "-", f"::{name}"]
        subprocess.run(command, input=text.encode(), check=True)


class Emulator:
    """A running machine; leaving the context is pulling its plug."""

    def __init__(self, card: Card, cpu: str, memory_mib: int) -> None:
        self.card, self.cpu, self.memory_mib = card, cpu, memory_mib
        self.mqtt_port, self.ssh_port = _free_ports(2)
        self.started = 0.0
        self.console = card.folder / "console.log"

    def __enter__(self) -> Self:
        slot = self.card.folder / SLOT
        slot.mkdir(exist_ok=True)
        for name in ("vmlinuz", "initrd.img", "cmdline.txt"):
            (slot / name).write_bytes(self.card.read(f"{SLOT}/{name}") or b"")
        forwards = f"hostfwd=tcp:{LOOPBACK}:{self.mqtt_port}-:1883,hostfwd=tcp:{LOOPBACK}:{self.ssh_port}-:22"
        machine = ["-M", "virt", "-cpu", self.cpu, "-smp", "2", "-m", str(self.memory_mib)]
        kernel = ["-kernel", slot / "vmlinuz", "-initrd", slot / "initrd.img"]
        words = ["-append", (slot / "cmdline.txt").read_text().strip()]
        drive = ["-drive", f"file={self.card.path},format=raw,if=virtio", "-device", "virtio-rng-pci"]
        network = ["-netdev", f"user,id=lan,restrict=on,{forwards}", "-device", "virtio-net-pci,netdev=lan,romfile="]
        screen = ["-display", "none", "-monitor", "none", "-serial", f"file:{self.console}"]
        command = ["qemu-system-aarch64", "-accel", "tcg,thread=multi", *machine, *kernel, *words, *drive, *network]
        self.started = time.monotonic()
        self._process = subprocess.Popen([str(it) for it in (*command, *screen)], stdin=subprocess.DEVNULL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(STOP_S)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind((LOOPBACK, 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
