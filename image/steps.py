"""Steps of a build: slow ones show where they are, and what one made is kept until what goes into it changes."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

SHOWN_EVERY_S: Final = 10.0


class Steps:
    """A folder with one subfolder for each step, named by the step and a digest of its inputs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self, name: str, inputs: Iterable[bytes], build: Callable[[Path], None]) -> Path:
        """The folder that `build` filled, now or earlier with the same inputs; older ones of that name go."""
        key = hashlib.sha256(b"\0".join(hashlib.sha256(it).digest() for it in inputs)).hexdigest()[:16]
        made = self._folder / f"{name}-{key}"
        if made.is_dir():
            print(f"==> {name}: as it is", flush=True)
            return made
        print(f"==> {name}", flush=True)
        started = time.monotonic()
        part = self._folder / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        build(part)
        for old in self._folder.glob(f"{name}-{'?' * 16}"):
            shutil.rmtree(old)
        part.rename(made)
        print(f"    {time.monotonic() - started:4.0f} s  done", flush=True)
        return made


def run(
    command: Sequence[object], log: Path, *, text: str | None = None, extra: Mapping[str, str] | None = None
) -> None:
    """Run a command with its output in `log`, and show now and then where it is; a failure ends the program."""
    started = shown = time.monotonic()
    source = subprocess.PIPE if text is not None else subprocess.DEVNULL
    log.parent.mkdir(parents=True, exist_ok=True)
    words, environment = [str(it) for it in command], {**os.environ, **(extra or {})}
    with (
        log.open("wb") as out,
        subprocess.Popen(words, stdin=source, stdout=out, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        if text is not None and process.stdin is not None:
            process.stdin.write(text.encode())
            process.stdin.close()
        while process.poll() is None:
            time.sleep(0.1)
            if time.monotonic() - shown >= SHOWN_EVERY_S:
                shown = time.monotonic()
                print(f"    {shown - started:4.0f} s  {_last_line(log)}", flush=True)
    if process.returncode:
        print(*log.read_text(errors="replace").splitlines()[-15:], sep="\n", file=sys.stderr)
        sys.exit(f"{Path(words[0]).name} failed with {process.returncode}: see {log}")


def read_tree(*paths: Path) -> Iterable[bytes]:
    """Names and contents of files, and of all files in folders: the inputs of a step."""
    for path in paths:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            if file.is_file() and "__pycache__" not in file.parts:
                yield f"{file.relative_to(path.parent)} {file.stat().st_mode & 0o111}".encode()
                yield file.read_bytes()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip()[:90] for line in reversed(lines) if line.strip()), "at work")
