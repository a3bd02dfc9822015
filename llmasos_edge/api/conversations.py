"""The turns of sessions that are in use: from the journal at first, then kept here as they grow."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from llmasos_edge.engine.protocol import Message

KEPT: Final = 64  # sessions in memory beside those with turns that are not on the disk yet

Key = tuple[str, str]  # client, session
Read = Callable[[str, str], Sequence[dict[str, object]]]


class Conversations:
    """The disk lags behind; what was said in this run is never read back from it. Thread-safe."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._turns: OrderedDict[Key, list[Message]] = OrderedDict()
        self._unwritten: dict[Key, int] = {}

    def turns(self, client: str, session: str) -> tuple[Message, ...]:
        """What was said so far. May wait for the disk."""
        with self._lock:
            return tuple(self._load((client, session)))

    def append(self, client: str, session: str, messages: Sequence[Message]) -> None:
        """A turn has ended; `written` follows when the journal has it."""
        key = (client, session)
        with self._lock:
            self._load(key).extend(messages)
            self._unwritten[key] = self._unwritten.get(key, 0) + 1

    def written(self, client: str, session: str) -> None:
        key = (client, session)
        with self._lock:
            self._unwritten[key] -= 1
            if not self._unwritten[key]:
                del self._unwritten[key]

    def forget(self, client: str, session: str) -> None:
        """It is removed: what comes under its name is a new one."""
        with self._lock:
            self._turns.pop((client, session), None)

    def _load(self, key: Key) -> list[Message]:
        if key not in self._turns:
            self._turns[key] = [Message(str(turn["role"]), str(turn["content"])) for turn in self._read(*key)]
            for old in [old for old in self._turns if old not in self._unwritten and old != key][:-KEPT]:
                del self._turns[old]
        self._turns.move_to_end(key)
        return self._turns[key]
