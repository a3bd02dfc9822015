"""The peer of the decode benchmark: llama-batched-bench, built from the very sources of the engine's library."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.node import ROOT
from llmasos_edge.engine.llama import VERSION

NAME: Final = "llama-batched-bench"
VARIABLE: Final = "LLMASOS_BATCHED_BENCH"
FOLDER: Final = ROOT / ".state" / "peers"
SHOWN_EVERY_S: Final = 5.0
OPTIONS: Final = ("LLAMA_BUILD_UI=OFF", "LLAMA_CURL=OFF", "LLAMA_BUILD_TESTS=OFF", "CMAKE_BUILD_TYPE=Release")


def find_peer(given: Path | None) -> Path:
    """The option, $LLMASOS_BATCHED_BENCH, what was built before, or a new build (some 15 minutes on two cores)."""
    named = given or (Path(os.environ[VARIABLE]) if VARIABLE in os.environ else None)
    if named is not None:
        if not os.access(named, os.X_OK):
            sys.exit(f"benchmarks: {named} is no program: give the path of a {NAME}, or nothing to have it built")
        return named
    binary = FOLDER / f"build-{VERSION}" / "bin" / NAME
    return binary if binary.is_file() else _build(binary)


def _build(binary: Path) -> Path:
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            sys.exit(f"benchmarks: {tool} is missing: `apt-get install cmake build-essential`, or give --peer PATH")
    FOLDER.mkdir(parents=True, exist_ok=True)
    source = _source()
    build = binary.parent.parent
    _step("configure", ["cmake", "-S", str(source), "-B", str(build), *(f"-D{option}" for option in OPTIONS)])
    jobs = str(len(os.sched_getaffinity(0)))
    _step("compile", ["cmake", "--build", str(build), "--parallel", jobs, "--target", NAME])
    return binary


def _source() -> Path:
    """llama.cpp as the source package has it; fetched with the hash of requirements.txt, and unpacked."""
    folder = FOLDER / f"llama_cpp_python-{VERSION}"
    if not folder.is_dir():
        pinned = FOLDER / "requirements.txt"
        pinned.write_text(_pinned())
        archive = folder.with_name(f"{folder.name}.tar.gz")
        pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "download", "--no-deps"]
        flags = ["--no-binary", "llama-cpp-python", "--require-hashes", "-r", str(pinned), "-d", str(FOLDER)]
        _step("download", [*pip, *flags])
        with tarfile.open(archive) as package:
            package.extractall(FOLDER, filter="data")
    return folder / "vendor" / "llama.cpp"


def _pinned() -> str:
    """The lines of llama-cpp-python in requirements.txt."""
    lines = iter((ROOT / "requirements.txt").read_text().splitlines())
    wanted = next(line for line in lines if line.startswith("llama-cpp-python=="))
    found = [wanted]
    while found[-1].endswith("\\"):
        found.append(next(lines))
    return "\n".join(found) + "\n"


def _step(name: str, command: Sequence[str]) -> None:
    """Run it with its output in a log, and show every few seconds where it is."""
    log = FOLDER / f"{name}.log"
    shown = time.monotonic()
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        while process.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - shown >= SHOWN_EVERY_S:
                shown = time.monotonic()
                print(f"   {name}: {_last_line(log)}", flush=True)
    if process.returncode:
        sys.exit(f"benchmarks: {name} of {NAME} failed: see {log}")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip()[:90] for line in reversed(lines) if line.strip()), "")


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
    sys.exit(f"benchmarks: {NAME} printed no figures (exit status {done.returncode}): {done.stderr[-1000:]}")
