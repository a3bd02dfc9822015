"""The tests of the boards: the files that ship, and the detection."""

from pathlib import Path

import pytest

from llmasos_edge.config.board import detect_board, load_board
from llmasos_edge.errors import ConfigError
from llmasos_edge.kernel.units import Bytes
from llmasos_edge.resources import resource

BOARDS = resource("board")


@pytest.mark.parametrize("file", sorted(BOARDS.glob("*.yaml")), ids=lambda it: it.stem)
def test_every_board_that_ships_loads_and_is_sound(file: Path) -> None:
    """A board leaves its system memory, and a default session fits."""
    board = load_board(file.stem, BOARDS)
    for ram in board.ram or (Bytes(2**31),):
        assert board.defaults.arena < board.budget(ram) < ram
    assert board.defaults.context >= 1024


def test_no_two_boards_claim_the_same_device_tree() -> None:
    """Detection is not a matter of the order of files."""
    names = [name for file in BOARDS.glob("*.yaml") for name in load_board(file.stem, BOARDS).compatible]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("compatible", "board"),
    [
        (b"raspberrypi,5-model-b\0brcm,bcm2712\0", "raspberry-pi-5"),
        (b"raspberrypi,4-model-b\0brcm,bcm2711\0", "raspberry-pi-4"),
        (b"raspberrypi,model-zero-2-w\0brcm,bcm2837\0", "raspberry-pi-zero-2-w"),
        (b"nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0", "jetson-orin-nano"),
        (b"raspberrypi,5-model-b\0brcm,bcm2711\0", "raspberry-pi-5"),
        (b"linux,dummy-virt\0", "generic-arm64"),
        (b"acme,unheard-of\xff\0", "generic-arm64"),
    ],
)
def test_the_device_tree_names_the_board(tmp_path: Path, compatible: bytes, board: str) -> None:
    """The first name of the device tree that a board file knows decides."""
    file = tmp_path / "compatible"
    file.write_bytes(compatible)
    assert detect_board(BOARDS, file, "aarch64").name == board


def test_without_a_device_tree_the_machine_decides(tmp_path: Path) -> None:
    """A PC has no device tree; an unknown machine is told to name its board."""
    assert detect_board(BOARDS, tmp_path / "none", "x86_64").name == "generic-x86-64"
    with pytest.raises(ConfigError, match=r"riscv64 .* spec\.board"):
        detect_board(BOARDS, tmp_path / "none", "riscv64")


def test_an_unknown_board_has_a_suggestion() -> None:
    """A misspelt board is met with the name that was meant."""
    with pytest.raises(ConfigError, match='did you mean "raspberry-pi-5"'):
        load_board("rasberry-pi-5", BOARDS)


def test_a_small_machine_keeps_half() -> None:
    """Where the reserve would take most of the RAM, half of it is the budget."""
    assert load_board("generic-x86-64", BOARDS).budget(Bytes(2**30)) == 2**29
