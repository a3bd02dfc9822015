"""The trigger queue: which message starts a run, which waits, which is dropped and why. Pure: time is an argument.

Everything counts per concrete topic: one run at a time, `every_s` between the starts of two.
`latest`: a newer message replaces one that waits. `coalesce`: those that wait become one list.
`every`: each message starts at once and is never held here, so that the caller can make each durable as it arrives.
A message for which the condition does not hold is not for the app: it replaces nothing that waits.
"""

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

from llmasos_edge.apps.template import Condition
from llmasos_edge.errors import BadRequest

TOPICS_LIMIT = 1024
COALESCE_LIMIT = 256
PAYLOAD_LIMIT = 64 * 1024
HELD_LIMIT = 2**20  # bytes of all payloads that wait

QueueKind = Literal["latest", "every", "coalesce"]


@dataclass(frozen=True, slots=True)
class Trigger:
    """What starts an app: messages on a filter, under a condition (None: all). `retained`: also retained ones."""

    mqtt: str
    when: Condition | None = None
    queue: QueueKind = "latest"
    every_s: float = 0
    retained: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Run now. With `coalesce` the payload is the list of all that waited."""

    topic: str
    payload: object


@dataclass(frozen=True, slots=True)
class Wait:
    """Held until then, or (None) until the run on this topic is finished. `replaced`: an older one was given up."""

    topic: str
    due_ms: int | None
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Drop:
    """Not run. `condition` is no fault; the others are, and the message says what to do."""

    topic: str
    reason: Literal["condition", "bad_payload", "full"]
    message: str


Decision = Start | Wait | Drop


@dataclass(slots=True)
class _Topic:
    running: bool = False
    free_ms: int = 0  # from when the rate limit lets the next run start
    waiting: list[bytes] = field(default_factory=list)


class TriggerQueue:
    """The messages of one app's trigger. Not thread-safe: one caller at a time."""

    def __init__(self, trigger: Trigger) -> None:
        self.trigger = trigger
        self._gap_ms = round(trigger.every_s * 1000)
        self._room = 1 if trigger.queue == "latest" else COALESCE_LIMIT
        self._held = 0
        self._topics: OrderedDict[str, _Topic] = OrderedDict()  # least recently used first

    def on_message(self, topic: str, payload: bytes, now_ms: int) -> Decision:
        """A message arrived."""
        try:
            value = decode(payload)
            if self.trigger.when and not self.trigger.when.holds({"topic": topic.split("/"), "payload": value}):
                return Drop(topic, "condition", "the condition does not hold")
        except BadRequest as error:
            return Drop(topic, "bad_payload", error.message)
        if self.trigger.queue == "every":
            return Start(topic, value)
        state = self._state(topic)
        if state is None:
            return Drop(topic, "full", f"more than {TOPICS_LIMIT} topics at once: narrow the filter")
        replaced = len(state.waiting) >= self._room
        held = self._held + len(payload) - (len(state.waiting[0]) if replaced else 0)
        if held > HELD_LIMIT and (state.running or state.free_ms > now_ms):
            return Drop(
                topic, "full", f"more than {HELD_LIMIT} bytes of payloads wait: narrow the filter or the condition"
            )
        state.waiting, self._held = [*state.waiting[replaced:], payload], held
        return self._next(topic, state, now_ms, replaced)

    def on_finished(self, topic: str, now_ms: int) -> Start | Wait | None:
        """The run on this topic ended, in whatever way. What waits starts, or waits for the rate limit."""
        state = self._topics.get(topic)
        if state is None:
            return None
        state.running = False
        return self._next(topic, state, now_ms, False) if state.waiting else None

    def due(self, now_ms: int) -> tuple[Start, ...]:
        """What waited for the rate limit and may start now."""
        ready = [(topic, it) for topic, it in self._topics.items() if it.waiting and not it.running]
        return tuple(self._start(topic, it, now_ms) for topic, it in ready if it.free_ms <= now_ms)

    def next_due(self) -> int | None:
        """When `due` has something next, if nothing else happens."""
        return min((it.free_ms for it in self._topics.values() if it.waiting and not it.running), default=None)

    def _next(self, topic: str, state: _Topic, now_ms: int, replaced: bool) -> Start | Wait:
        if state.running:
            return Wait(topic, None, replaced)
        if state.free_ms > now_ms:
            return Wait(topic, state.free_ms, replaced)
        return self._start(topic, state, now_ms)

    def _start(self, topic: str, state: _Topic, now_ms: int) -> Start:
        values = [decode(it) for it in state.waiting]
        self._held -= sum(map(len, state.waiting))
        state.running, state.free_ms, state.waiting = True, now_ms + self._gap_ms, []
        return Start(topic, values if self.trigger.queue == "coalesce" else values[0])

    def _state(self, topic: str) -> _Topic | None:
        """The topic's state, made if there is room: where there is none, the least recently used idle topic goes."""
        state = self._topics.get(topic)
        if state is None:
            if len(self._topics) >= TOPICS_LIMIT and not self._forget_one():
                return None
            state = self._topics[topic] = _Topic()
        self._topics.move_to_end(topic)
        return state

    def _forget_one(self) -> bool:
        for topic, it in self._topics.items():
            if not it.running and not it.waiting:
                del self._topics[topic]
                return True
        return False


def decode(payload: bytes) -> object:
    """The JSON value of a payload, or its text where it is none. BadRequest if it is empty, huge, or not UTF-8."""
    if not payload:
        raise BadRequest("an empty payload")
    if len(payload) > PAYLOAD_LIMIT:
        raise BadRequest(f"a payload of {len(payload)} bytes: the limit is {PAYLOAD_LIMIT}")
    try:
        text = payload.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"the payload is not UTF-8 (byte {error.start})") from None
    try:
        value: object = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise BadRequest("the payload is nested too deeply") from None
    except ValueError:
        return text
    return value


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
