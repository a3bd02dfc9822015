"""The acknowledgements in both directions: those that we owe the broker, and those that it owes us (MQTT 5, 4.6)."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Slot:
    """One received message that has to be acknowledged."""

    __slots__ = ("done", "mid")

    def __init__(self, mid: int) -> None:
        self.mid = mid
        self.done = False


class AckLine:
    """The messages of one connection that wait for their PUBACK, oldest first.

    Any thread may acknowledge, in any order; `send` is called in order of receipt, under a lock, and must not block.
    What is acknowledged after its connection ended is left alone: the broker sends that message again. While `held`
    says so nothing is sent, until `release` is called: so the broker brings no more.
    """

    def __init__(self, send: Callable[[int], None], held: Callable[[], bool] = bool) -> None:
        self._send, self._held = send, held
        self._lock = threading.Lock()
        self._line: deque[_Slot] | None = None

    def open(self) -> None:
        """A connection is there."""
        with self._lock:
            self._line = deque()

    def close(self) -> None:
        """The connection is gone, and with it every acknowledgement not yet sent."""
        with self._lock:
            self._line = None

    def take(self, mid: int) -> Callable[[], None]:
        """Put a message in line; returns what acknowledges it (once; further calls do nothing)."""
        slot = _Slot(mid)
        with self._lock:
            line = self._line
            if line is not None:
                line.append(slot)
        return lambda: self._acknowledge(line, slot)

    def _acknowledge(self, line: deque[_Slot] | None, slot: _Slot) -> None:
        with self._lock:
            slot.done = True
            if line is self._line:
                self._send_done()

    def release(self) -> None:
        """It may no longer be held: send what is due."""
        with self._lock:
            self._send_done()

    def _send_done(self) -> None:
        line = self._line
        while line and line[0].done and not self._held():
            self._send(line.popleft().mid)


class Deliveries:
    """The publishes that the broker has not acknowledged yet (QoS 1), or that are not yet sent (QoS 0).

    A message's id is known only after it was handed over, when its acknowledgement may already be there: what comes
    early is kept until nobody is handing over.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[int, Callable[[], None] | None]] = {}
        self._unacknowledged = 0  # of them, at QoS 1
        self._early: set[int] = set()
        self._handing_over = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether the broker owes us as many acknowledgements as it may."""
        return self._unacknowledged >= self._limit

    @contextmanager
    def handing_over(self) -> Iterator[None]:
        """Around the hand-over of one message and its `expect`."""
        with self._lock:
            self._handing_over += 1
        try:
            yield
        finally:
            with self._lock:
                self._handing_over -= 1
                if not self._handing_over:
                    self._early.clear()

    def expect(self, mid: int, qos: int, then: Callable[[], None] | None) -> None:
        """Call `then` once `mid` is acknowledged: now, if it already was."""
        with self._lock:
            if mid not in self._early:
                self._waiting[mid] = (qos, then)
                self._unacknowledged += qos
                return
            self._early.remove(mid)
        if then is not None:
            then()

    def acknowledged(self, mid: int) -> None:
        """The broker has `mid`."""
        with self._lock:
            qos, then = self._waiting.pop(mid, (None, None))
            self._unacknowledged -= qos or 0
            if qos is None and self._handing_over:
                self._early.add(mid)
        if then is not None:
            then()

    def lose_unsent(self) -> None:
        """The connection is gone: at QoS 0 nothing more will come of what was under way."""
        with self._lock:
            self._waiting = {mid: entry for mid, entry in self._waiting.items() if entry[0]}

    def take(self, mid: int) -> Callable[[], None] | None:
        """Give up waiting for `mid`; returns what was to be called."""
        with self._lock:
            qos, then = self._waiting.pop(mid, (0, None))
            self._unacknowledged -= qos
            return then
