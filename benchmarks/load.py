"""The load that is measured: many streams, and urgent questions among them, from a process of its own."""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Final, ParamSpec, TypeVar

from benchmarks.node import MODEL
from benchmarks.streams import Chat, Streams

P = ParamSpec("P")
R = TypeVar("R")

URGENT_TOKENS: Final = 8
SETTLE_S: Final = 3.0  # until all streams are under way
BLOCK: Final = 10  # urgent questions between two quiet windows
LONG_S: Final = 600.0


def apart(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What the function returns, called in a process that does nothing else, and ends with the caller's interest."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_call, args=(theirs, function, args, kwargs))
    process.start()
    theirs.close()
    try:
        result: R = ours.recv()
    except EOFError:
        sys.exit(f"benchmarks: {function.__name__} failed: see above")
    finally:
        process.terminate()
        process.join()
    return result


def _call(
    result: Connection, function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]
) -> None:
    result.send(function(*args, **kwargs))


class _Cost:
    """Share of a core that this process uses from now on."""

    def __init__(self) -> None:
        self._began, self._used = time.perf_counter(), _cpu_s()

    def share(self) -> float:
        return (_cpu_s() - self._used) / (time.perf_counter() - self._began)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# ---- throughput


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens a second from the first request to the end of the last answer, prompts included; characters of a token."""

    tokens_s: float
    characters: float
    cpu: float


def throughput(port: int, width: int, tokens: int, number: int) -> Rate:
    """`width` answers at once, not streamed: the server counts their tokens. `number`: that of the first story."""
    streams, cost, began = Streams(port, MODEL), _Cost(), time.perf_counter()
    chats = [
        streams.begin(f"Tell story {number + each} about the sea, as long as you can.", tokens, stream=False)
        for each in range(width)
    ]
    waiting = width
    while waiting:
        waiting -= len(streams.turn(LONG_S))
    seconds = time.perf_counter() - began
    streams.close()
    for chat in chats:
        if chat.failure or not chat.tokens:
            raise RuntimeError(f"a stream failed: {chat.failure or 'no usage'}")
    total = sum(chat.tokens for chat in chats)
    return Rate(total / seconds, sum(chat.characters for chat in chats) / total, cost.share())


# ---- urgent


@dataclass(frozen=True, slots=True)
class Plan:
    """`background` streams of `tokens` each, without a pause; `urgent` questions, `gap_s` apart, after `idle` ones on
    the idle server. One that has no token after `patience_s` is given up, and no more are asked.
    """

    background: int
    tokens: int
    urgent: int
    idle: int
    gap_s: float
    quiet_s: float
    patience_s: float
    number: int


@dataclass(slots=True)
class Urgent:
    """Milliseconds to the first tokens of urgent questions; characters a second of all background streams, in
    the windows without urgent questions and in those with them; `begun`: background streams that have had a token.
    """

    idle_ms: list[float] = field(default_factory=list)
    loaded_ms: list[float] = field(default_factory=list)
    quiet: list[float] = field(default_factory=list)
    shared: list[float] = field(default_factory=list)
    given_up: int = 0
    begun: int = 0
    failures: list[str] = field(default_factory=list)
    cpu: float = 0.0


def urgent(port: int, plan: Plan) -> Urgent:
    return _Load(port, plan).measure()


class _Load:
    def __init__(self, port: int, plan: Plan) -> None:
        self._streams = Streams(port, MODEL)
        self._plan = plan
        self._told = Urgent()
        self._stories = self._questions = plan.number
        self._running: dict[Chat, int] = {}  # and which background stream it is
        self._begun: set[int] = set()
        self._characters = 0  # of the background's answers that have ended

    def measure(self) -> Urgent:
        plan, told = self._plan, self._told
        self._ask(told.idle_ms)  # not counted: the first that the server sees of this kind
        told.idle_ms.clear()
        for _ in range(plan.idle):
            self._ask(told.idle_ms)
        cost = _Cost()
        for place in range(plan.background):
            self._tell(place)
        self._turn(SETTLE_S)
        asked = 0
        while asked < plan.urgent and not told.given_up:
            told.quiet.append(self._rate(lambda: self._turn(plan.quiet_s)))
            block = min(BLOCK, plan.urgent - asked)
            told.shared.append(self._rate(lambda block=block: self._ask_some(block)))  # type: ignore[misc]
            asked += block
        self._begun.update(place for chat, place in self._running.items() if chat.first)
        told.begun, told.cpu = len(self._begun), cost.share()
        self._streams.close()
        return told

    def _rate(self, window: Callable[[], None]) -> float:
        before, began = self._heard(), time.perf_counter()
        window()
        return (self._heard() - before) / (time.perf_counter() - began)

    def _heard(self) -> int:
        return self._characters + sum(chat.characters for chat in self._running)

    def _ask_some(self, count: int) -> None:
        for _ in range(count):
            if not self._told.given_up:
                self._ask(self._told.loaded_ms)

    def _ask(self, times: list[float]) -> None:
        """One urgent question, and the pause after it."""
        self._questions += 1
        text = f"Smoke detector in room {self._questions}: what must I do first? Answer in one short sentence."
        chat = self._streams.begin(text, URGENT_TOKENS, tier="priority")
        self._turn(self._plan.patience_s, until=chat)
        if chat.first:
            times.append((chat.first - chat.sent) * 1000)
        if not chat.ended:
            self._streams.leave(chat)
            self._told.given_up += 1
        elif chat.failure:
            self._told.failures.append(f"urgent: {chat.failure}")
        self._turn(self._plan.gap_s)

    def _tell(self, place: int) -> None:
        self._stories += 1
        text = f"Write a long story number {self._stories} about a lighthouse keeper and the sea."
        self._running[self._streams.begin(text, self._plan.tokens, tier="flex")] = place

    def _turn(self, seconds: float, until: Chat | None = None) -> None:
        """Let the streams run for so long, or until one has ended. A background stream goes on with another answer, but
        not after a failure: a server that refuses is not asked without end.
        """
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0 and not (until and until.ended):
            for chat in self._streams.turn(left):
                place = self._running.pop(chat, None)
                if place is None:
                    continue
                self._characters += chat.characters
                if chat.failure:
                    self._told.failures.append(f"background: {chat.failure}")
                else:
                    self._begun.add(place)
                    self._tell(place)
