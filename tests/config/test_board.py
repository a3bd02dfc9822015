"""The tests of the boards: the files that ship, and the detection."""

import re
from pathlib import Path

import pytest

from llmasos_edge.config.board import detect_board, load_board
from llmasos_edge.errors import ConfigError
from llmasos_edge.kernel.units import Bytes
from llmasos_edge.resources import resource
from llmasos_edge.services.catalogue import catalogue

BOARDS = resource("board")


@pytest.mark.parametrize("file", sorted(BOARDS.glob("*.yaml")), ids=lambda it: it.stem)
def test_every_board_that_ships_loads_and_is_sound(file: Path) -> None:
    """A board leaves its system memory, and a default session fits."""
    board = load_board(file.stem, BOARDS)
    for ram in board.ram or (Bytes(2**31),):
        assert board.defaults.arena < board.budget(ram) < ram
    assert board.defaults.context >= 1024
    assert board.storage_read_per_s


@pytest.mark.parametrize("file", sorted(BOARDS.glob("*.yaml")), ids=lambda it: it.stem)
def test_recommended_models_are_of_the_catalogue(file: Path) -> None:
    """A board recommends what `model pull` can get, with a context that the model knows, and half its RAM holds it."""
    board, known = load_board(file.stem, BOARDS), catalogue()
    for model in board.models:
        assert model.context <= known[model.name].context
        assert known[model.name].size < board.budget(min(board.ram, default=Bytes(2**31))) // 2
        assert board.context(model.name) == model.context
    assert board.context("another") == board.defaults.context


def test_what_an_image_needs() -> None:
    """The boards that an image is built for name its kernel, and each its own device trees."""
    boards = [load_board(f"raspberry-pi-{it}", BOARDS) for it in ("5", "4", "zero-2-w")]
    assert {board.kernel for board in boards} == {"linux-image-arm64"}
    trees = [tree for board in boards for tree in board.device_trees]
    assert len(trees) == len(set(trees)) == 6
    assert all(tree.startswith("broadcom/bcm2") for tree in trees)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ("kernal: x", 'board.yaml:7: spec.kernal: unknown key; did you mean "kernel"'),
        ("storage_read_per_s: {sdd: 10MiB}", 'spec.storage_read_per_s.sdd: unknown key; did you mean "sd"'),
        ("storage_read_per_s: {sd: 10}", "has no unit"),
        ("device_trees: [../up/a.dtb]", "is no device tree"),
        ("models: [{name: m}]", 'the key "context" is missing'),
        ("throttles_at_c: 800", "out of range"),
    ],
)
def test_a_wrong_board_file_is_told(tmp_path: Path, wrong: str, problem: str) -> None:
    """Unknown keys and wrong values are told with file and line."""
    (tmp_path / "board.yaml").write_text(
        "apiVersion: llmasos/v1\nkind: Board\nmetadata: {name: board, description: A board}\nspec:\n"
        "  machine: aarch64\n  reserve: 1GiB\n"
        f"  {wrong}\n  defaults: {{arena: 64MiB, context: 4096, sequences: 8}}\n"
        + ("" if "throttles" in wrong else "  throttles_at_c: 80\n")
    )
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load_board("board", tmp_path)


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
