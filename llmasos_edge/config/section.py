"""The strict form: one mapping of a document, from which each known key is taken, and what nobody took is an error."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self, TypeVar

from llmasos_edge.config.values import described
from llmasos_edge.config.yaml_reader import Document, KeyPath

API_VERSION = "llmasos/v1"

T = TypeVar("T")
Reader = Callable[[object], T]  # raises ValueError with what is wrong


class Section:
    """Use it as a context manager: on the way out, keys that were never asked for are reported.

    Nothing here raises for a wrong file: problems gather in the document, a blank stands for what is wrong, and
    `document.finish()` raises them together before anyone sees the blanks.
    """

    def __init__(self, document: Document, where: KeyPath, data: object) -> None:
        self.document = document
        self.where = where
        self._asked: list[str] = []
        self._data: Mapping[str, object] = data if isinstance(data, dict) else {}
        if not isinstance(data, dict):
            document.report(where, f"expected a mapping (key: value), not {described(data)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for key in self._data if kind is None else ():
            if key not in self._asked:
                self.document.report((*self.where, key), f"unknown key{suggestion(key, self._asked)}")

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def plain(self) -> dict[str, object]:
        """The mapping as it stands in the file."""
        return dict(self._data)

    def report(self, key: str, message: str) -> None:
        """Note a problem with the value of a key."""
        self.document.report((*self.where, key), message)

    def take(self, key: str, read: Reader[T], default: T) -> T:
        """The value of a key, or the default where it is not given."""
        self._asked.append(key)
        if key not in self._data:
            return default
        try:
            return read(self._data[key])
        except ValueError as error:
            self.report(key, str(error))
            return default

    def need(self, key: str, read: Reader[T], blank: T) -> T:
        """The value of a key that must be there."""
        if key not in self._data:
            self.document.report(self.where, f'the key "{key}" is missing')
        return self.take(key, read, blank)

    def items(self, key: str, read: Reader[T]) -> tuple[T, ...]:
        """The values of a list, each read alone; an absent list is empty."""
        found: list[T] = []
        for index, item in enumerate(self._list(key)):
            try:
                found.append(read(item))
            except ValueError as error:
                self.document.report((*self.where, key, index), str(error))
        return tuple(found)

    def section(self, key: str) -> "Section":
        """The mapping under a key; an absent one is empty."""
        self._asked.append(key)
        return Section(self.document, (*self.where, key), self._data.get(key, {}))

    def sections(self, key: str) -> Iterator["Section"]:
        """The mappings of a list."""
        for index, item in enumerate(self._list(key)):
            yield Section(self.document, (*self.where, key, index), item)

    def _list(self, key: str) -> list[object]:
        self._asked.append(key)
        value = self._data.get(key, [])
        if isinstance(value, list):
            return value
        self.report(key, f"expected a list, not {described(value)}")
        return []


def root(document: Document, kind: str) -> Section:
    """The document's top mapping, of which `apiVersion` and `kind` are checked."""
    top = Section(document, (), document.data)
    for key, wanted in (("apiVersion", API_VERSION), ("kind", kind)):
        top.need(key, _exactly(wanted), wanted)
    return top


def _exactly(wanted: str) -> Reader[str]:
    def read(value: object) -> str:
        if value != wanted:
            raise ValueError(f'must be "{wanted}", not {described(value)}')
        return wanted

    return read


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?`, or what there is, or nothing where there is nothing."""
    words = sorted(set(known))
    close = difflib.get_close_matches(word, words, n=1)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; there are: {', '.join(words)}" if words else ""
