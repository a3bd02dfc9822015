"""Tests of how a real node comes up and goes down: its lock, its configuration, systemd's protocol, and a full disk."""

import ctypes
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos_edge.errors import StoreError
from llmasos_edge.ipc.broker import ManagedBroker
from tests.integration.conftest import MakeDevice, MakeNode
from tests.integration.real_node import MODELS, ROOT, RealNode, eventually

MANAGED, FOREIGN = "managed: true, port: 0", 'url: "mqtts://127.0.0.1:1", trust: acl'
WHOLE_MODEL = next(MODELS.glob("*.gguf"), Path("the model is missing: ./run setup"))


def last_words(node: RealNode, status: int) -> str:
    """The log of a daemon that must end by itself with this exit status."""
    assert node.spawn().wait(30) == status, node.log.read_text()
    return node.log.read_text()


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(node: RealNode, tmp_path: Path) -> None:
    """One state directory, one daemon; the first one is not disturbed."""
    second = RealNode(tmp_path)
    second.state = node.state
    words = last_words(second, 78)
    assert f"pid {node.pid}" in words
    assert str(node.state) in words
    assert node.ask("Hello")["status"] == "ok"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("spec:", "spec:\n  memry: {}"), 'did you mean "memory"'),
        (("metadata:", "metadata: {name: b}\nmetadata:"), "metadata"),
        (("budget: 1GiB", "budget: lots"), "budget"),
        (("budget: 1GiB, arena: 32MiB", "budget: 60MiB, arena: 32MiB"), "budget"),
        (("apps: []", "apps: [no-such-app]"), "no-such-app"),
        (
            ("managed: true, port: 0", 'url: "mqtt://127.0.0.1:1", trust: acl, user: u, password_file: nowhere'),
            "password_file",
        ),
        ((MANAGED, f"{FOREIGN}, ca_file: nowhere"), "ca_file"),
        (("kind: Node", "kind: [Node"), "node.yaml"),
    ],
    ids=[
        "unknown key",
        "duplicate key",
        "wrong value",
        "budget too small",
        "no app",
        "no password",
        "no ca",
        "no yaml",
    ],
)
def test_a_wrong_configuration_ends_with_78(make_node: MakeNode, change: tuple[str, str], words: str) -> None:
    """Said in words on stderr, without a traceback; systemd does not try again."""
    node = make_node()
    text = node.config.read_text()
    assert change[0] in text
    node.config.write_text(text.replace(*change))
    said = last_words(node, 78)
    assert words in said
    assert "Traceback" not in said


def test_a_taken_port_is_named(make_node: MakeNode) -> None:
    """The node that can't start its broker says which port, leaves nothing behind, and fails."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = make_node(f"{{managed: true, port: {port}}}")
        process = node.spawn()
        assert process.wait(30) == 78
    assert f"port {port} is taken" in node.log.read_text()
    assert not (node.runtime / "control.sock").exists()


def test_check_reads_the_configuration_and_nothing_else(node: RealNode) -> None:
    """`--check` beside a running node."""
    command = [sys.executable, "-m", "llmasos_edge.daemon", "--check", "--config", str(node.config)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (checked.returncode, checked.stdout) == (0, f"{node.config}: ok\n")


class Systemd:
    """A notify socket, and what came on it, with the moments."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)
        self.said: list[str] = []

    def heard(self, word: str) -> bool:
        try:
            while True:
                self.said += self._socket.recv(4096).decode().splitlines()
        except BlockingIOError:
            return word in self.said

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(tmp_path)
    yield systemd
    systemd.close()


def test_systemd_hears_ready_alive_and_stopping(make_node: MakeNode, systemd: Systemd) -> None:
    """READY only when the node can answer; WATCHDOG from the kernel's loop, which stops when that hangs; STOPPING."""
    node = make_node()
    node.spawn(NOTIFY_SOCKET=str(systemd.path), WATCHDOG_USEC="400000")
    eventually((node.runtime / "control.sock").exists, "the control socket is there")
    while not systemd.heard("READY=1"):
        assert not node.status().get("ready") or systemd.heard("READY=1")
        time.sleep(0.01)
    assert node.status()["ready"] is True
    assert node.ask("Hello")["status"] == "ok"
    assert systemd.heard("WATCHDOG=1")
    before = systemd.said.count("WATCHDOG=1")
    time.sleep(1.0)
    systemd.heard("")
    assert 3 <= systemd.said.count("WATCHDOG=1") - before <= 8
    assert "STOPPING=1" not in systemd.said
    assert node.terminate() == 0
    assert systemd.heard("STOPPING=1")
    assert systemd.said.count("READY=1") == 1


def test_sigterm_while_it_starts_ends_it_too(make_node: MakeNode) -> None:
    """At whatever moment of the start: while the model is fetched, while it is loaded."""
    node = make_node()
    for delay_s in (0.0, 0.3, 0.6, 1.2):
        node.spawn()
        eventually((node.runtime / "control.sock").exists, "the control socket is there")
        time.sleep(delay_s)
        assert node.terminate() == 0, delay_s
        assert not (node.runtime / "control.sock").exists()


def test_sigint_and_sighup(make_node: MakeNode) -> None:
    """SIGHUP reloads the apps and keeps the old ones when the new ones are wrong; SIGINT ends like SIGTERM."""
    node = make_node(apps="summarize").start()
    text = node.config.read_text()
    node.config.write_text(text.replace("apps: [summarize]", "apps: [summarize, translate]"))
    node.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
    eventually(lambda: node.status()["apps"] == ["summarize", "translate"], "the new app is there")
    node.config.write_text(text.replace("apps: [summarize]", "apps: [nonsense]"))
    node.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
    eventually(lambda: "not reloaded" in node.log.read_text(), "the mistake is told")
    assert node.status()["apps"] == ["summarize", "translate"]
    assert node.end(signal.SIGINT) == 0


def test_a_damaged_journal_does_not_keep_the_node_down(make_node: MakeNode) -> None:
    """It is set aside and told; the node starts with a new one."""
    node = make_node().start()
    node.kill()
    (node.state / "journal.db").write_bytes(os.urandom(50_000))
    for beside in node.state.glob("journal.db-*"):
        beside.unlink()
    node.start()
    assert node.ask("Hello")["status"] == "ok"
    assert "journal" in node.log.read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB: a tmpfs for root, and for others a limit on file sizes does the same to the store."""
    folder = tmp_path / "node" / "state"
    folder.mkdir(parents=True)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=16m") == 0, os.strerror(ctypes.get_errno())
    yield folder
    assert libc.umount2(os.fsencode(folder), 2) == 0  # MNT_DETACH


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_told_and_harms_nothing_else(
    make_node: MakeNode, outer_broker: ManagedBroker, make_device: MakeDevice
) -> None:
    """The store refuses what has no room; the journal refuses durable work; both go on once there is room again."""
    node = make_node(f'{{url: "mqtt://127.0.0.1:{outer_broker.port}", trust: acl}}')
    # The model itself does not fit: its place is another disk.
    blobs = node.state / "models/blobs"
    blobs.parent.mkdir()
    (node.folder / "blobs").mkdir()
    blobs.symlink_to(node.folder / "blobs")
    node.start()
    phone = make_device(outer_broker.port, "phone")
    phone.generate("before", "Hello", max_tokens=2)
    assert phone.reply("before")["status"] == "ok"
    blobs.unlink()
    blobs.mkdir()
    with pytest.raises(StoreError, match="disk is full"):
        node.call("model.add", path=str(WHOLE_MODEL), name="big")
    assert list(blobs.iterdir()) == []
    ballast = node.state / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    phone.generate("full", "Hello" * 5_000, max_tokens=2)
    error = phone.reply("full")["error"]
    assert (error["code"], error["retry_after_ms"] > 0) == ("store", True)
    assert f"{ROOT}/res/phone/full/accepted" not in phone.topics()
    phone.generate("best-effort", "Hello", qos=0, max_tokens=2)
    assert phone.reply("best-effort")["status"] == "ok"
    ballast.unlink()
    phone.generate("full", "Hello", max_tokens=2)
    assert phone.nth(f"{ROOT}/res/phone/full", 1)["status"] == "ok"
    with sqlite3.connect(node.state / "journal.db") as journal:
        assert journal.execute("pragma integrity_check").fetchone() == ("ok",)
    journal.close()
