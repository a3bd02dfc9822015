"""requirements.txt, read: packages with their hashes, and the source of the engine's, fetched and unpacked."""

import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from image import ROOT
from image.steps import run
from llmasos_edge.engine.version import VERSION

PIP: Final = (sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check")


def pinned(wanted: Callable[[str], bool]) -> str:
    """The lines of the packages whose names are wanted."""
    return "".join(lines for name, lines in _packages() if wanted(name))


def _packages() -> Iterator[tuple[str, str]]:
    """Each package's name, and its lines: the one that names it, and those of its hashes."""
    block = ""
    for line in (ROOT / "requirements.txt").read_text().splitlines(keepends=True):
        block += "" if line.startswith("#") else line
        if block and not line.rstrip().endswith("\\"):
            yield block.split("==")[0], block
            block = ""


def engine_source(folder: Path) -> Path:
    """llama-cpp-python's source in `folder`; fetched with the hash of requirements.txt if it is not there yet."""
    source = folder / f"llama_cpp_python-{VERSION}"
    if not source.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        wanted = folder / "requirements.txt"
        wanted.write_text(pinned(lambda name: name == "llama-cpp-python"))
        flags = ("--no-binary", "llama-cpp-python", "--require-hashes", "-r", str(wanted), "-d", str(folder))
        run([*PIP, "download", "--no-deps", *flags], folder / "download.log")
        with tarfile.open(folder / f"{source.name}.tar.gz") as package:
            package.extractall(folder, filter="data")
    return source
