"""Tests of first boot as a whole, on a folder, with the machine's commands written down instead of run."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmasos_edge.errors import Internal
from llmasos_edge.firstboot.machine import Machine
from llmasos_edge.firstboot.setup import ACCESS, APPLIED, MISTAKES, set_up

GOOD = "apiVersion: llmasos/v1\nkind: Appliance\nspec: {hostname: kitchen}\n"
CLIENT = "apiVersion: llmasos/v1\nkind: Appliance\nspec: {mqtt: {clients: [{name: phone, password: 12345678x}]}}\n"
NODE = "apiVersion: llmasos/v1\nkind: Node\nmetadata: {name: mine}\nspec: {models: [{name: smollm2-135m}]}\n"


class Board:
    """A machine in a folder. Its commands succeed, but for those in `broken`."""

    def __init__(self, folder: Path) -> None:
        self.root, self.boot, self.state = folder / "root", folder / "boot", folder / "state"
        self.boot.mkdir()
        self.said: list[str] = []
        self.broken: set[str] = set()

    def run(self, command: Sequence[str], text: str) -> None:
        self.said.append(command[0])
        if command[0] in self.broken:
            raise Internal(f"{command[0]} failed")

    def set_up(self) -> None:
        set_up(Machine(self.root, self.boot, self.state, self.run), Path("/dev/null"))

    def file(self, path: str) -> str:
        return (self.root / path).read_text()

    def told(self, name: str) -> str:
        return (self.boot / name).read_text()


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    board = Board(tmp_path)
    monkeypatch.setattr(Machine, "grow_data", lambda machine, device: machine._run(["resize2fs"], ""))
    return board


def test_a_card_as_it_was_flashed(board: Board) -> None:
    """It has a name, a host key, a client with a password that only the card knows, and no mistake to tell."""
    board.set_up()
    password = re.search(r"^Password: +(\S+)$", board.told(ACCESS), re.MULTILINE)
    assert password is not None
    assert f"owner:{password[1]}\n" in board.file("etc/mosquitto/passwd")
    assert {"resize2fs", "ssh-keygen", "mosquitto_passwd", "hostname"} <= set(board.said)
    assert "name: llmasos\n" in board.file("etc/llmasos/node.yaml")
    assert not (board.boot / MISTAKES).exists()
    assert not (board.root / "etc/ssh/authorized_keys.d").exists()


def test_settings_are_applied(board: Board) -> None:
    """Host and node have the name that the file gives; the clients are those of the file, and no note is written."""
    (board.boot / "llmasos.yaml").write_text(CLIENT.replace("{mqtt", "{hostname: kitchen, mqtt"))
    board.set_up()
    assert board.file("etc/hostname") == "kitchen\n"
    assert "name: kitchen\n" in board.file("etc/llmasos/node.yaml")
    assert "phone:12345678x\n" in board.file("etc/mosquitto/passwd")
    assert not (board.boot / ACCESS).exists()


def test_the_owner_s_node_file(board: Board) -> None:
    """It takes the place of ours."""
    (board.boot / "node.yaml").write_text(NODE)
    board.set_up()
    assert board.file("etc/llmasos/node.yaml") == NODE


def test_a_mistake_is_told_and_the_node_comes_up(board: Board) -> None:
    """With the defaults, and with a way in."""
    (board.boot / "llmasos.yaml").write_text(GOOD.replace("hostname", "hostnam"))
    (board.boot / "node.yaml").write_text(NODE.replace("smollm2-135m", "x").replace("models", "modles"))
    board.set_up()
    told = board.told(MISTAKES)
    assert 'llmasos.yaml:3: spec.hostnam: unknown key; did you mean "hostname"?' in told
    assert 'node.yaml:4: spec.modles: unknown key; did you mean "models"?' in told
    assert str(board.boot) not in told
    assert "name: llmasos\n" in board.file("etc/llmasos/node.yaml")
    assert (board.boot / ACCESS).exists()


def test_a_mended_file_is_applied_and_the_password_stays(board: Board) -> None:
    """The second run changes what the file changed; what the owner wrote down still holds."""
    (board.boot / "llmasos.yaml").write_text(GOOD.replace("hostname", "hostnam"))
    board.set_up()
    passwords, note = board.file("etc/mosquitto/passwd"), board.told(ACCESS)
    (board.boot / "llmasos.yaml").write_text(GOOD)
    board.set_up()
    assert not (board.boot / MISTAKES).exists()
    assert board.file("etc/hostname") == "kitchen\n"
    assert (board.file("etc/mosquitto/passwd"), board.told(ACCESS)) == (passwords, note)
    assert board.said.count("resize2fs") == 1


def test_a_later_mistake_leaves_what_was(board: Board) -> None:
    """A machine that works is not set back to the defaults by a slip."""
    (board.boot / "llmasos.yaml").write_text(GOOD)
    board.set_up()
    (board.boot / "llmasos.yaml").write_text(GOOD + "x")
    board.set_up()
    assert board.file("etc/hostname") == "kitchen\n"
    assert (board.boot / MISTAKES).exists()


def test_a_command_that_fails_stops_nothing(board: Board) -> None:
    """A card that can't be grown still becomes a node, and its owner is told."""
    board.broken = {"resize2fs", "ssh-keygen"}
    board.set_up()
    assert "resize2fs failed" in board.told(MISTAKES)
    assert (board.boot / ACCESS).exists()


def test_power_lost_before_the_note_was_written(board: Board) -> None:
    """What counts as done is the last thing that is written: until then a new password is made, and told."""
    board.set_up()
    (board.state / APPLIED).unlink()
    (board.boot / ACCESS).unlink()
    board.set_up()
    assert re.search(r"^Password: +(\S+)$", board.told(ACCESS), re.MULTILINE)[1] in board.file("etc/mosquitto/passwd")  # type: ignore[index]


def test_what_was_applied_is_compared_byte_by_byte(board: Board) -> None:
    """The unit's ExecCondition compares both files, one after the other, with this one."""
    (board.boot / "llmasos.yaml").write_text(GOOD)
    (board.boot / "node.yaml").write_text(NODE)
    board.set_up()
    assert (board.state / APPLIED).read_text() == GOOD + NODE
