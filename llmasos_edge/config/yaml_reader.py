"""The strict YAML reader: plain data with the line of every key; duplicates, aliases and huge files are refused."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmasos_edge.errors import ConfigError

FILE_LIMIT = 2**20
DEPTH_LIMIT = 32

KeyPath = tuple[str | int, ...]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is missing where libyaml was at build time
_SCALARS = yaml.constructor.SafeConstructor()
_READ = {
    "tag:yaml.org,2002:null": _SCALARS.construct_yaml_null,
    "tag:yaml.org,2002:bool": _SCALARS.construct_yaml_bool,
    "tag:yaml.org,2002:int": _SCALARS.construct_yaml_int,
    "tag:yaml.org,2002:float": _SCALARS.construct_yaml_float,
    "tag:yaml.org,2002:str": _SCALARS.construct_yaml_str,
}


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong with a file, and where."""

    line: int
    key: str
    message: str


@dataclass(slots=True)
class Document:
    """A file's plain data, the line of each key path, and the problems found so far."""

    file: Path
    data: object = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def report(self, where: KeyPath, message: str) -> None:
        """Note a problem at a key path; a key that is not there has the line of what should hold it."""
        known = where
        while known not in self.lines and known:
            known = known[:-1]
        self.problems.append(Problem(self.lines.get(known, 1), key_name(where), message))

    def finish(self) -> None:
        """Raise one ConfigError with all the problems, in the order of the file, if there are any."""
        if self.problems:
            raise config_error(self.file, sorted(self.problems))


def config_error(file: Path, problems: list[Problem]) -> ConfigError:
    """`FILE:LINE: KEY: MESSAGE`, a line each; `details.problems` has the same as values."""
    rows = [f"{file}:{it.line}: {it.key + ': ' if it.key else ''}{it.message}" for it in problems]
    shapes = [{"line": it.line, "key": it.key, "message": it.message} for it in problems]
    return ConfigError("\n".join(rows), details={"file": str(file), "problems": shapes})


def key_name(where: KeyPath) -> str:
    """`spec.models[0].name` for a path of keys and positions."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in where).removeprefix(".")


def read_yaml(file: Path) -> Document:
    """Read one YAML document. A duplicate key becomes a problem of it; what can't be read at all is a ConfigError."""
    text = _text(file)
    document = Document(file)
    loader = _LOADER(text)
    try:
        _refuse_traps(file, text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise config_error(file, [Problem(line, "", f"not YAML: {error.problem or error.context}")]) from None
    except yaml.YAMLError as error:
        raise config_error(file, [Problem(1, "", f"not YAML: {error}")]) from None
    finally:
        loader.dispose()
    document.data = None if node is None else _convert(document, node, ())
    return document


def _text(file: Path) -> str:
    try:
        with file.open("rb") as source:
            raw = source.read(FILE_LIMIT + 1)
        if len(raw) > FILE_LIMIT:
            raise ConfigError(f"{file}: larger than {FILE_LIMIT // 1024} KiB: this is no configuration file")
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 (byte {error.start}): save it as UTF-8") from None


def _refuse_traps(file: Path, text: str) -> None:
    """Aliases can grow a small file into gigabytes, and depth overflows the stack of the composer."""
    depth = 0
    for event in yaml.parse(text, _LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise config_error(file, [_at(event, "aliases (*name) are not read: write the value out")])
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
            if depth > DEPTH_LIMIT:
                raise config_error(file, [_at(event, f"nested deeper than {DEPTH_LIMIT} levels")])
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1


def _at(event: Any, message: str) -> Problem:
    return Problem(event.start_mark.line + 1, "", message)


def _convert(document: Document, node: yaml.Node, where: KeyPath) -> object:
    document.lines[where] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        return _mapping(document, node, where)
    if isinstance(node, yaml.SequenceNode):
        return [_convert(document, item, (*where, index)) for index, item in enumerate(node.value)]
    return _scalar(document, node, where)


def _mapping(document: Document, node: yaml.MappingNode, where: KeyPath) -> Mapping[str, object]:
    found: dict[str, object] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value
        if key_node.tag != "tag:yaml.org,2002:str":
            shown = f'"{key}"' if isinstance(key, str) else "this"
            document.problems.append(Problem(line, key_name(where), f"{shown} is no text key: put it in quotes"))
            continue
        here = (*where, key)
        if key in found:
            message = f"duplicate key (first on line {document.lines[here]})"
            document.problems.append(Problem(line, key_name(here), message))
            continue
        found[key] = _convert(document, value_node, here)
        document.lines[here] = line
    return found


def _scalar(document: Document, node: Any, where: KeyPath) -> object:
    try:
        value: object = _READ[node.tag](node)
    except (KeyError, ValueError):
        document.report(where, f'"{str(node.value)[:40]}" is neither text nor a number: put it in quotes')
        return None
    if isinstance(value, float) and not math.isfinite(value):
        document.report(where, "must be a finite number")
        return None
    return value
