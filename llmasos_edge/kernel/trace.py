"""The kernel's trace: a ring of recent events, which `llmasos dmesg` shows."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from llmasos_edge.kernel.units import Milliseconds

RING: Final = 2048


@dataclass(frozen=True, slots=True)
class TraceEvent:
    at_ms: Milliseconds  # on the kernel's clock
    kind: str  # "task.preempted", "model.loaded", ...
    details: dict[str, object] = field(default_factory=dict)


class Trace:
    """Listeners are called at once, on the kernel's thread."""

    def __init__(self) -> None:
        self._ring: deque[TraceEvent] = deque(maxlen=RING)
        self._listeners: list[Callable[[TraceEvent], None]] = []

    def record(self, now: Milliseconds, kind: str, **details: object) -> None:
        event = TraceEvent(now, kind, details)
        self._ring.append(event)
        self._notify(event)

    def tell(self, now: Milliseconds, kind: str, **details: object) -> None:
        """Only to the listeners: what comes too often to be kept."""
        self._notify(TraceEvent(now, kind, details))

    def _notify(self, event: TraceEvent) -> None:
        for listener in tuple(self._listeners):
            listener(event)

    def events(self) -> list[TraceEvent]:
        return list(self._ring)

    def follow(self, listener: Callable[[TraceEvent], None]) -> None:
        self._listeners.append(listener)

    def unfollow(self, listener: Callable[[TraceEvent], None]) -> None:
        self._listeners.remove(listener)
