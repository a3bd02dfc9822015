"""Tests of the model store: names, manifests, pulls, damage, and full disks."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.errors import BadRequest, LLMasOSError, StoreError, UnknownModel
from llmasos_edge.services.catalogue import Entry
from llmasos_edge.services.disk import silent
from llmasos_edge.services.store import ModelStore

CONTENT = b"GGUF" + bytes(5000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "given" / "tiny.gguf"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def catalogue(source: Path, sha256: str = SHA256) -> dict[str, Entry]:
    return {"tiny": Entry("tiny", "tiny.gguf", source.as_uri(), sha256, len(CONTENT), "MIT", 128)}


def test_add_find_and_names(root: Path, model: Path) -> None:
    """An added model is found by its name, with its hash, size and licence, in another process's eyes too."""
    added = ModelStore(root, None).add(model, "mine", licence="MIT")
    store = ModelStore(root, None)
    assert store.find("mine") == added
    assert (added.sha256, added.size, added.licence) == (SHA256, len(CONTENT), "MIT")
    assert added.path.read_bytes() == CONTENT
    assert store.names() == ["mine"]
    assert files(root) == [f"blobs/{SHA256}.gguf", "mine.json"]


def test_an_added_model_is_a_copy(root: Path, model: Path) -> None:
    """What the caller does to the file afterwards does not reach the store."""
    store = ModelStore(root, None)
    store.add(model, "mine")
    model.write_bytes(b"GGUF, but another one")
    assert store.verify("mine").sha256 == SHA256


def test_one_file_for_two_names(root: Path, model: Path) -> None:
    """Two names share a file; it goes with the last of them."""
    store = ModelStore(root, None)
    store.add(model, "one")
    store.add(model, "two")
    store.remove("one")
    assert files(root) == [f"blobs/{SHA256}.gguf", "two.json"]
    store.remove("two")
    assert files(root) == []


def test_add_refuses_another_hash(root: Path, model: Path) -> None:
    """A file that differs from the expected hash is not stored."""
    store = ModelStore(root, None)
    with pytest.raises(StoreError, match="refused"):
        store.add(model, "mine", expected_sha256="0" * 64)
    assert files(root) == []


def test_add_refuses_what_is_no_model(root: Path, tmp_path: Path) -> None:
    """A file of another kind, and one that is not there, are refused by path."""
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    store = ModelStore(root, None)
    with pytest.raises(StoreError, match="notes.txt is not a GGUF"):
        store.add(text, "mine")
    with pytest.raises(StoreError, match="no such file"):
        store.add(tmp_path / "absent.gguf", "mine")


def test_a_name_keeps_its_content(root: Path, model: Path, tmp_path: Path) -> None:
    """A name in use is not given another file."""
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF other")
    store = ModelStore(root, None)
    store.add(model, "mine")
    with pytest.raises(StoreError, match="remove it first"):
        store.add(other, "mine")


def test_verify_finds_damage(root: Path, model: Path) -> None:
    """A single changed byte is found."""
    store = ModelStore(root, None)
    path = store.add(model, "mine").path
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(StoreError, match="damaged"):
        store.verify("mine")


@pytest.mark.parametrize("call", ["remove", "verify"])
def test_unknown_models(root: Path, call: str) -> None:
    """A model that is not in the store is named."""
    with pytest.raises(UnknownModel, match="absent is not in the store"):
        getattr(ModelStore(root, None), call)("absent")


@given(name=st.text())
def test_names_never_leave_the_folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever a name is, it is refused, or it is a plain file name."""
    store = ModelStore(tmp_path_factory.getbasetemp() / "names", None)
    try:
        assert store.find(name) is None
    except BadRequest:
        return
    assert "/" not in name
    assert not name.startswith(".")


def test_a_manifest_without_its_file_is_absent(root: Path, model: Path) -> None:
    """A model whose file is gone is not found, and adding it again mends it."""
    store = ModelStore(root, None)
    store.add(model, "mine").path.unlink()
    assert store.find("mine") is None
    assert store.add(model, "mine").path.is_file()


def test_a_broken_manifest_is_named(root: Path, model: Path) -> None:
    """A manifest that can't be read is an error with its path."""
    store = ModelStore(root, None)
    store.add(model, "mine")
    (root / "mine.json").write_text("{")
    with pytest.raises(StoreError, match="mine.json"):
        store.find("mine")


def test_pull(root: Path, model: Path) -> None:
    """A pulled model has its hash, licence and source from the catalogue; a second pull brings nothing."""
    store = ModelStore(root, None, catalogue(model))
    pulled = store.pull("tiny", silent)
    assert (pulled.sha256, pulled.licence, pulled.source) == (SHA256, "MIT", model.as_uri())
    model.unlink()
    assert store.pull("tiny", silent) == pulled
    assert json.loads((root / "tiny.json").read_text())["sha256"] == SHA256


def test_pull_refuses_another_hash(root: Path, model: Path) -> None:
    """A source whose file differs leaves nothing behind."""
    with pytest.raises(StoreError, match="refused"):
        ModelStore(root, None, catalogue(model, sha256="0" * 64)).pull("tiny", silent)
    assert files(root) == []


def test_pull_of_an_unknown_name(root: Path, model: Path) -> None:
    """A name that the catalogue lacks is answered with those that it has."""
    with pytest.raises(UnknownModel, match=r"smollm9 is not in the catalogue \(tiny\)"):
        ModelStore(root, None, catalogue(model)).pull("smollm9", silent)


def test_pull_takes_from_the_source_folder(root: Path, model: Path, tmp_path: Path) -> None:
    """A model file that is already on the machine is linked, not downloaded."""
    store = ModelStore(root, model.parent, catalogue(tmp_path / "nowhere"))
    assert store.pull("tiny", silent).path.samefile(model)


def test_pull_passes_over_a_damaged_file(root: Path, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong file in the source folder is told in the log, and the model comes from its source."""
    folder = model.parent.parent / "damaged"
    folder.mkdir()
    (folder / "tiny.gguf").write_bytes(CONTENT[:-1] + b"!")
    store = ModelStore(root, folder, catalogue(model))
    assert store.pull("tiny", silent).path.read_bytes() == CONTENT
    assert "is not used" in caplog.text
    assert files(root) == [f"blobs/{SHA256}.gguf", "tiny.json"]


def test_a_full_disk_at_add(root: Path, model: Path) -> None:
    """ENOSPC while a model is copied says what is needed and free, and leaves nothing."""
    store = ModelStore(root, None)
    (root / "blobs" / "mine.add").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="disk is full") as refusal:
        store.add(model, "mine")
    assert refusal.value.details is not None
    assert refusal.value.details["needed"] == len(CONTENT)
    assert files(root) == []


def test_no_room_for_a_huge_file(root: Path, tmp_path: Path) -> None:
    """A file larger than the free space is refused before a byte is copied."""
    huge = tmp_path / "huge.gguf"
    with huge.open("wb") as file:
        file.write(b"GGUF")
        file.truncate(2**42)
    with pytest.raises(StoreError, match="disk is full"):
        ModelStore(root, None).add(huge, "huge")
    assert files(root) == []


def test_a_root_that_can_not_be_made(tmp_path: Path) -> None:
    """A state folder that is a file is an error of the store."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LLMasOSError, match="can't be made"):
        ModelStore(tmp_path / "file", None)


def test_a_self_test_stays_with_the_model(root: Path, model: Path) -> None:
    """It is in the entry, for every process that looks, until the model is removed."""
    store = ModelStore(root, None)
    store.add(model, "mine")
    store.note_selftest("mine", {"deterministic": "yes", "parked": 0})
    found = ModelStore(root, None).find("mine")
    assert found is not None
    assert found.selftest == {"deterministic": "yes", "parked": 0}
    with pytest.raises(UnknownModel):
        store.note_selftest("other", {})
