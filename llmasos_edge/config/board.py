"""The boards: one YAML file each (RAM, cores, sensors, safe defaults), and which of them this machine is."""

import platform
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
_STORAGE = {it: it for it in ("sd", "emmc", "nvme", "usb", "sata")}


@dataclass(frozen=True, slots=True)
class BoardDefaults:
    """What a node file may leave out, and gets from its board."""

    arena: Bytes
    context: int
    sequences: int


@dataclass(frozen=True, slots=True)
class Board:
    """A kind of machine. `ram` lists the sizes that it is sold with (empty: any); `reserve` is left to the system."""

    name: str
    description: str
    machine: str
    compatible: tuple[str, ...]
    ram: tuple[Bytes, ...]
    reserve: Bytes
    cores: int | None
    storage: tuple[str, ...]
    thermal_zones: tuple[str, ...]
    defaults: BoardDefaults

    def budget(self, ram: Bytes) -> Bytes:
        """The memory budget of a node on this board with so much RAM, when the node file names none."""
        return Bytes(max(ram - self.reserve, ram // 2))


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
        ram=spec.items("ram", values.size),
        reserve=spec.need("reserve", values.size, Bytes(0)),
        cores=spec.take("cores", values.integer(1, 1024), None),
        storage=spec.items("storage", values.one_of(_STORAGE)),
        thermal_zones=spec.items("thermal_zones", values.text),
        defaults=safe,
    )


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
