"""The model store: files by sha256, a manifest for each name, and every change atomic and durable."""

import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from llmasos_edge.errors import BadRequest, StoreError, UnknownModel
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
    silent,
    sync_folder,
    write_durably,
)

if TYPE_CHECKING:
    from llmasos_edge.services.catalogue import Entry

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

log = logging.getLogger(__name__)


class MemoryNotes(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of the memory that a model takes, on this machine; sizes in bytes.

    `dry_runs`: llama.cpp's own, by what they depend on. `runtime`: the process with its vocabulary, as measured, by the
    library's version. `excess`: what was ever seen beyond all charges. `first`: the first load, `charged` without any
    correction, and `measured`. `repack_failed`: the worker died when it loaded repacked weights.
    """

    dry_runs: dict[str, dict[str, int]] = {}
    runtime: dict[str, int] = {}
    excess: int = 0
    first: dict[str, int] | None = None
    repack_failed: bool = False


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What <name>.json holds."""

    name: str
    sha256: str
    size: int  # bytes
    licence: str
    source: str
    selftest: dict[str, str | int] | None = None  # what engine/selftest.py found on this machine
    memory: MemoryNotes = MemoryNotes()


class StoredModel(msgspec.Struct, frozen=True):
    """A model that is on disk; `path` is its file, `size` in bytes."""

    name: str
    path: Path
    sha256: str
    size: int
    licence: str
    source: str
    selftest: dict[str, str | int] | None = None
    memory: MemoryNotes = MemoryNotes()


class ModelStore:
    """Models in `root`; `source` is a folder of model files that a pull looks into first ($LLMASOS_MODELS).

    Any thread may call it, and any number of processes may share a root. Every refusal is a StoreError, but for
    a name that is not one (BadRequest) and a model that nobody knows (UnknownModel).
    """

    def __init__(self, root: Path, source: Path | None, catalogue: Mapping[str, "Entry"] | None = None) -> None:
        self._root = root
        self._source = source
        self._catalogue = catalogue
        self._blobs = root / "blobs"
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self._blobs}: can't be made: {error.strerror}") from error

    def names(self) -> list[str]:
        return sorted(path.stem for path in self._root.glob("*.json"))

    def find(self, name: str) -> StoredModel | None:
        """The model's place on disk, or None when it is not here whole."""
        manifest = self._manifest(name)
        if manifest is None or not (path := self._blob(manifest.sha256)).is_file():
            return None
        return StoredModel(path=path, **msgspec.structs.asdict(manifest))

    def note_selftest(self, name: str, result: dict[str, str | int]) -> StoredModel:
        """Keeps what the self-test found with the model's name."""
        if (manifest := self._manifest(name)) is None:
            raise self._unknown(name)
        return self._record(msgspec.structs.replace(manifest, selftest=result))

    def note_memory(self, model: StoredModel, notes: MemoryNotes) -> None:
        """Keeps what is known of the model's memory with its name; nothing, if that is another file's now."""
        manifest = self._manifest(model.name)
        if manifest is not None and manifest.sha256 == model.sha256:
            self._record(msgspec.structs.replace(manifest, memory=notes))

    def add(
        self, path: Path, name: str, expected_sha256: str | None = None, licence: str = "", report: Report = silent
    ) -> StoredModel:
        """Copies a model file of the caller's into the store."""
        self._require_new(name, expected_sha256)
        part = self._blobs / f"{name}.add"
        size = _gguf_size(path)
        with making(self._blobs, size, part), locked(self._blobs):
            _copy_in(path, part, size, report)
            digest = sha256_of(part, report)
            if expected_sha256 is not None:
                require_sha256(part, expected_sha256)
            install(part, self._blob(digest))
            return self._record(Manifest(name, digest, size, licence, path.absolute().as_uri()))

    def remove(self, name: str) -> None:
        """Forgets the name; its file goes when no other name has it."""
        with making(self._root, 0), locked(self._root):
            if (manifest := self._manifest(name)) is None:
                raise self._unknown(name)
            self._manifest_path(name).unlink()
            sync_folder(self._root)
            others = (self._manifest(other) for other in self.names())
            if manifest.sha256 not in {other.sha256 for other in others if other is not None}:
                self._blob(manifest.sha256).unlink(missing_ok=True)

    def verify(self, name: str, report: Report = silent) -> StoredModel:
        """Reads the whole file again; StoreError when it is not what was stored."""
        if (model := self.find(name)) is None:
            raise self._unknown(name)
        if (actual := sha256_of(model.path, report)) != model.sha256:
            raise StoreError(
                f"{name}: damaged: its sha256 is {actual}, not {model.sha256}. Remove it, and pull or add it again.",
                details={"sha256": actual, "expected": model.sha256},
            )
        return model

    def pull(self, name: str, progress: Callable[[Progress], None]) -> StoredModel:
        """Brings a model of the catalogue: from the `source` folder if that has it, else from where the entry says."""
        from llmasos_edge.services.fetch import fetch  # noqa: PLC0415 - HTTP, TLS, zip: 8 MB that only a pull needs

        entry = self._entry(name)
        self._require_new(name, entry.sha256)
        blob = self._blob(entry.sha256)
        if not blob.exists() and not self._take(entry, blob, progress):
            fetch(entry, blob, progress)
        return self._record(Manifest(name, entry.sha256, entry.size, entry.licence, entry.source))

    def _entry(self, name: str) -> "Entry":
        from llmasos_edge.services.catalogue import catalogue  # noqa: PLC0415 - YAML: only a pull needs it

        known = catalogue() if self._catalogue is None else self._catalogue
        if _checked(name) not in known:
            listed = ", ".join(sorted(known))
            raise UnknownModel(f"{name} is not in the catalogue ({listed}); a file of yours is added with `model add`")
        return known[name]

    def _take(self, entry: "Entry", blob: Path, report: Report) -> bool:
        """Links or copies the entry's file out of the source folder; whether that has it, with the right hash."""
        if self._source is None or not (path := self._source / entry.file).is_file():
            return False
        part = blob.with_name(blob.name + ".taken")
        with making(self._blobs, entry.size, part), locked(self._blobs):
            part.unlink(missing_ok=True)
            try:
                os.link(path.resolve(), part)
            except OSError:  # another file system, or another owner's file
                _copy_in(path, part, entry.size, report)
            try:
                require_sha256(part, entry.sha256, report)
            except StoreError as error:
                log.warning("%s is not used: %s", path, error)
                return False
            install(part, blob)
        return True

    def _record(self, manifest: Manifest) -> StoredModel:
        with locked(self._root):
            if not self._blob(manifest.sha256).exists():
                raise StoreError(f"{manifest.name}: was removed in the meantime; pull or add it again")
            write_durably(self._manifest_path(manifest.name), msgspec.json.encode(manifest))
        return StoredModel(path=self._blob(manifest.sha256), **msgspec.structs.asdict(manifest))

    def _require_new(self, name: str, sha256: str | None) -> None:
        """A name is never given other content while it stands: the model may be in use."""
        if (model := self.find(name)) is not None and model.sha256 != sha256:
            raise StoreError(f"{name} is already in the store, with sha256 {model.sha256}: remove it first")

    def _manifest(self, name: str) -> Manifest | None:
        path = self._manifest_path(name)
        try:
            return msgspec.json.decode(path.read_bytes(), type=Manifest)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, OSError) as error:
            raise StoreError(f"{path}: can't be read ({error}); delete it, and pull or add the model again") from error

    def _manifest_path(self, name: str) -> Path:
        return self._root / f"{_checked(name)}.json"

    def _blob(self, sha256: str) -> Path:
        return self._blobs / f"{sha256}.gguf"

    def _unknown(self, name: str) -> UnknownModel:
        here = ", ".join(self.names()) or "none"
        return UnknownModel(f"{name} is not in the store (here: {here}); `llmasos model pull {name}` may bring it")


def _checked(name: str) -> str:
    if NAME.fullmatch(name) is None:
        raise BadRequest(f"model: {name!r} is not a name: a-z, 0-9, '.', '_', '-', at most 64, a letter or digit first")
    return name


def _gguf_size(path: Path) -> int:
    """The size of a GGUF file, in bytes."""
    if not path.is_file():
        raise StoreError(f"{path}: there is no such file")
    with making(path.parent, 0), path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise StoreError(f"{path} is not a GGUF model: it does not begin with GGUF")
        return path.stat().st_size


def _copy_in(path: Path, part: Path, size: int, report: Report) -> None:
    require_room(part.parent, size)
    with path.open("rb") as source:
        copy(source, part, size, "copy", report)
