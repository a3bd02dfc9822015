"""The outbox: QoS 1 messages that wait until the broker takes them, in order, bounded by their bytes."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_TOPIC: Final = 65_535  # bytes
OVERHEAD: Final = 400  # bytes that a waiting message takes beside its topic and its payload
LONG: Final = 256  # messages: with so many in line, nobody should bring us more to answer


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish. ValueError for a topic that can't be published to."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    correlation: bytes | None
    content_type: str | None
    on_delivered: Callable[[], None] | None

    def __post_init__(self) -> None:
        if not self.topic or {"+", "#"} & set(self.topic) or len(self.topic.encode()) > MAX_TOPIC:
            raise ValueError(f"{self.topic[:200]!r} is no topic to publish to")

    @property
    def size(self) -> int:
        return len(self.topic) + len(self.payload) + OVERHEAD


class Outbox:
    """`hand_over` is called for one message after the other, never by two threads at once, while `may` says so.

    Any thread puts and pumps; none waits for another, for callers may hold locks that `hand_over` takes.
    """

    def __init__(self, limit: int, may: Callable[[], bool], hand_over: Callable[[Outgoing], None]) -> None:
        """`limit`: bytes in line."""
        self._limit, self._may, self._hand_over = limit, may, hand_over
        self._line: deque[Outgoing] = deque()
        self._bytes = 0
        self._count = threading.Lock()  # of the bytes
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return len(self._line)

    @property
    def long(self) -> bool:
        return len(self._line) >= LONG

    def put(self, message: Outgoing) -> bool:
        """Whether there was room for it."""
        with self._count:
            if self._line and self._bytes + message.size > self._limit:
                return False
            self._bytes += message.size
            self._line.append(message)
        self.pump()
        return True

    def pump(self) -> None:
        """Hand over what may go. Who finds another at it leaves it to that one, who looks again afterwards."""
        while self._line and self._may():
            if not self._turn.acquire(blocking=False):
                return
            try:
                if self._line and self._may():
                    self._hand_over(self._next())
            finally:
                self._turn.release()

    def _next(self) -> Outgoing:
        with self._count:
            message = self._line.popleft()
            self._bytes -= message.size
        return message
