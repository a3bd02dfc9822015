"""The peers: llama.cpp's own programs, built from the very sources of the engine's library."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.node import ROOT
from image.requirements import engine_source
from image.steps import run
from llmasos_edge.engine.version import VERSION

BATCHED_BENCH: Final = "llama-batched-bench"
SERVER: Final = "llama-server"
VARIABLES: Final = {BATCHED_BENCH: "LLMASOS_BATCHED_BENCH", SERVER: "LLMASOS_LLAMA_SERVER"}
FOLDER: Final = ROOT / ".state" / "peers"
OPTIONS: Final = ("LLAMA_BUILD_UI=OFF", "LLAMA_CURL=OFF", "LLAMA_BUILD_TESTS=OFF", "CMAKE_BUILD_TYPE=Release")


def find_peer(name: str, given: Path | None) -> Path:
    """The option, its variable, what was built before, or a new build (some 15 minutes on two cores)."""
    variable = VARIABLES[name]
    named = given or (Path(os.environ[variable]) if variable in os.environ else None)
    if named is not None:
        if not os.access(named, os.X_OK):
            sys.exit(f"benchmarks: {named} is no program: give the path of a {name}, or nothing to have it built")
        return named
    binary = FOLDER / f"build-{VERSION}" / "bin" / name
    return binary if binary.is_file() else _build(binary)


def _build(binary: Path) -> Path:
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            sys.exit(f"benchmarks: {tool} is missing: `apt-get install cmake build-essential`, or give --peer PATH")
    source, build = engine_source(FOLDER) / "vendor" / "llama.cpp", binary.parent.parent
    run(["cmake", "-S", source, "-B", build, *(f"-D{option}" for option in OPTIONS)], FOLDER / "configure.log")
    jobs = len(os.sched_getaffinity(0))
    run(["cmake", "--build", build, "--parallel", jobs, "--target", binary.name], FOLDER / "compile.log")
    return binary


def run_peer(binary: Path, model: Path, lengths: tuple[int, int, int], flags: Sequence[str]) -> dict[str, Any]:
    """One run of `lengths` (prompt, generated, sequences): batched-bench's own figures; `speed_tg` is tok/s."""
    prompt, generated, sequences = lengths
    cells = (prompt + generated) * sequences
    command = [str(binary), "-m", str(model), "-c", str(cells), "--output-format", "jsonl", *flags]
    sizes = ["-npp", str(prompt), "-ntg", str(generated), "-npl", str(sequences)]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            figures: dict[str, Any] = json.loads(line)
            return figures
    sys.exit(f"benchmarks: {binary.name} printed no figures (exit status {done.returncode}): {done.stderr[-1000:]}")
