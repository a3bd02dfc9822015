"""The boards: one YAML file each (RAM, cores, storage, sensors, safe defaults), and which of them this machine is."""

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmasos_edge.config import values
from llmasos_edge.config.section import Section, root, suggestion
from llmasos_edge.config.yaml_reader import read_yaml
from llmasos_edge.errors import ConfigError
from llmasos_edge.kernel.units import Bytes

COMPATIBLE = Path("/proc/device-tree/compatible")

_GENERIC = {"x86_64": "generic-x86-64", "aarch64": "generic-arm64"}
_MACHINES = {it: it for it in _GENERIC}
_STORAGE = ("sd", "emmc", "nvme", "usb", "sata", "virtual")
_DEVICE_TREE = re.compile(r"[a-z0-9-]+/[A-Za-z0-9+._-]+\.dtb", re.ASCII)


@dataclass(frozen=True, slots=True)
class BoardDefaults:
    """What a node file may leave out, and gets from its board."""

    arena: Bytes
    context: int
    sequences: int


@dataclass(frozen=True, slots=True)
class BoardModel:
    """A model of the catalogue that is known to suit a board, with the longest context that is pleasant there."""

    name: str
    context: int


@dataclass(frozen=True, slots=True)
class Board:
    """A kind of machine: what it has, what it is good for, and what an image for it must carry.

    `ram` lists the sizes that it is sold with (empty: any), `reserve` is left to the system. `storage_read_per_s` names
    the kinds of disk that may hold a node's state, with the least that each should read in a second. `kernel` is a
    Debian package, and `device_trees` are files of its `dtb` folder; both are empty where no image is built.
    """

    name: str
    description: str
    machine: str
    compatible: tuple[str, ...]
    kernel: str | None
    device_trees: tuple[str, ...]
    ram: tuple[Bytes, ...]
    reserve: Bytes
    cores: int | None
    storage_read_per_s: Mapping[str, Bytes]
    thermal_zones: tuple[str, ...]
    throttles_at_c: int
    models: tuple[BoardModel, ...]
    defaults: BoardDefaults

    def budget(self, ram: Bytes) -> Bytes:
        """The memory budget of a node on this board with so much RAM, when the node file names none."""
        return Bytes(max(ram - self.reserve, ram // 2))

    def context(self, model: str) -> int:
        """The context of a model whose entry in the node file names none."""
        return next((it.context for it in self.models if it.name == model), self.defaults.context)


def load_board(name: str, boards: Path) -> Board:
    """The board of that name among the board files. ConfigError where there is none, or its file is wrong."""
    file = boards / f"{name}.yaml"
    if not file.is_file():
        known = (it.stem for it in boards.glob("*.yaml"))
        raise ConfigError(f'{boards}: no board "{name}"{suggestion(name, known)}')
    document = read_yaml(file)
    with root(document, "Board") as top:
        with top.section("metadata") as metadata:
            given = metadata.need("name", values.name, name)
            if given != name:
                metadata.report("name", f'"{given}" must be the file\'s name, "{name}"')
            description = metadata.need("description", values.text, "")
        with top.section("spec") as spec:
            board = _board(spec, name, description)
    document.finish()
    return board


def _board(spec: Section, name: str, description: str) -> Board:
    with spec.section("defaults") as defaults:
        safe = BoardDefaults(
            arena=defaults.need("arena", values.size, Bytes(0)),
            context=defaults.need("context", values.context, 0),
            sequences=defaults.need("sequences", values.sequences, 0),
        )
    return Board(
        name=name,
        description=description,
        machine=spec.need("machine", values.one_of(_MACHINES), ""),
        compatible=spec.items("compatible", values.text),
        kernel=spec.take("kernel", values.name, None),
        device_trees=spec.items("device_trees", _device_tree),
        ram=spec.items("ram", values.size),
        reserve=spec.need("reserve", values.size, Bytes(0)),
        cores=spec.take("cores", values.integer(1, 1024), None),
        storage_read_per_s=_storage(spec),
        thermal_zones=spec.items("thermal_zones", values.text),
        throttles_at_c=spec.need("throttles_at_c", values.integer(40, 125), 0),
        models=tuple(_model(it) for it in spec.sections("models")),
        defaults=safe,
    )


def _storage(spec: Section) -> Mapping[str, Bytes]:
    with spec.section("storage_read_per_s") as storage:
        taken = {kind: storage.take(kind, values.size, Bytes(0)) for kind in _STORAGE}
        return {kind: least for kind, least in taken.items() if kind in storage}


def _model(section: Section) -> BoardModel:
    with section as model:
        return BoardModel(model.need("name", values.name, ""), model.need("context", values.context, 0))


def _device_tree(value: object) -> str:
    """A file below the folder of a kernel's device trees."""
    if not _DEVICE_TREE.fullmatch(values.text(value)):
        raise values.WrongValue(f"{values.described(value)} is no device tree: write it like vendor/board.dtb")
    return str(value)


def detect_board(boards: Path, compatible: Path = COMPATIBLE, machine: str = platform.machine()) -> Board:
    """The board that this machine's device tree names (its most specific name first), else the generic one.

    `compatible` is a list of NUL-terminated strings, most specific first (Devicetree Specification, 2.3.1).
    """
    try:
        names = compatible.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        names = []
    known = {it: board for board in _all_boards(boards) for it in board.compatible}
    for name in names:
        if name in known:
            return known[name]
    if machine not in _GENERIC:
        there = ", ".join(_GENERIC)
        raise ConfigError(f"no board for a {machine} machine (there are: {there}): name one in spec.board")
    return load_board(_GENERIC[machine], boards)


def _all_boards(boards: Path) -> list[Board]:
    return [load_board(it.stem, boards) for it in sorted(boards.glob("*.yaml"))]
