"""Prefix: streams that share a long system prompt, beside llama-server, and beside streams without one."""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.chat import Answered, Messages, chat
from benchmarks.conversations import documents
from benchmarks.llama_server import LlamaServer
from benchmarks.machine import describe
from benchmarks.node import BenchNode
from benchmarks.peer import SERVER, find_peer
from benchmarks.report import spread, table, verdict

TITLE: Final = (
    "tokens a second of streams that share a 3,000-character system prompt, beside llama-server, and without it"
)
GOAL_PEER: Final = (4, 2.0)  # streams, and times llama-server's rate
GOAL_OWN: Final = (8, 0.9)  # streams, and of our own rate without the prompt
CHARACTERS: Final = 3000
SLOT: Final = 2048  # cells for each of the peer's slots
NEW, ONE, AGAIN, NONE = "new", "after one", "again", "none"
KINDS: Final = {
    NEW: "nobody has used it before",
    ONE: "after one request with it",
    AGAIN: "after as many streams with it",
    NONE: "no system prompt",
}
Ask = Callable[[Messages, int], Answered]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (3)")
    parser.add_argument("--tokens", type=int, default=96, help="that each stream generates at most (96)")
    parser.add_argument("--streams", type=int, nargs="+", default=[4, 8], help="at once (4 8)")
    parser.add_argument("--peer", type=Path, metavar="PATH", help="a llama-server that is built already")


class Load:
    """What is asked: system prompts that differ from their first words on, and questions that nobody asked before."""

    def __init__(self) -> None:
        self._text = documents()
        self._asked = 0

    def system(self) -> str:
        self._asked += 1
        return f"You are assistant {self._asked} of a house. You know this: {self._text}"[:CHARACTERS]

    def messages(self, system: str | None) -> Messages:
        self._asked += 1
        question = {"role": "user", "content": f"Tell story {self._asked} about the sea, as long as you can."}
        return [question] if system is None else [{"role": "system", "content": system}, question]


def _rate(ask: Ask, load: Load, system: str | None, streams: int, tokens: int) -> float:
    """Tokens a second from the first request to the end of the last answer, prompts included."""
    asked = [load.messages(system) for _ in range(streams)]
    began = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        answers = list(pool.map(lambda messages: ask(messages, tokens), asked))
    return sum(each.generated for each in answers) / (time.perf_counter() - began)


def _round(ask: Ask, load: Load, streams: int, tokens: int) -> dict[str, float]:
    """One rate of each kind."""
    first, second = load.system(), load.system()
    rates = {NONE: _rate(ask, load, None, streams, tokens)}
    rates[NEW] = _rate(ask, load, first, streams, tokens)
    rates[AGAIN] = _rate(ask, load, first, streams, tokens)
    ask(load.messages(second), 1)
    return rates | {ONE: _rate(ask, load, second, streams, tokens)}


def run(options: argparse.Namespace) -> None:
    peer = find_peer(SERVER, options.peer)
    describe("prefix")
    widest = max(options.streams)
    flags = ("--cache-ram", "8192", "--cache-reuse", "256", "-np", str(widest), "-c", str(widest * SLOT))
    found: dict[int, list[tuple[dict[str, float], dict[str, float]]]] = {width: [] for width in options.streams}
    load = Load()
    with BenchNode() as node, LlamaServer(peer, flags) as server:
        print(f"system prompt: {CHARACTERS} characters; each stream generates {options.tokens} tokens at most, greedy")
        print(f"peer: llama-server {' '.join(server.flags)}", flush=True)

        def ours(messages: Messages, tokens: int) -> Answered:
            return chat(node, messages, tokens)

        for number in range(options.rounds):
            for width in options.streams:
                # who goes first alternates, so that a machine that slows down or warms up favours nobody
                order = (ours, server.chat) if number % 2 else (server.chat, ours)
                rates = {ask: _round(ask, load, width, options.tokens) for ask in order}
                found[width].append((rates[ours], rates[server.chat]))
                print(f"   round {number + 1}, {width} streams: {_told(*found[width][-1])}", flush=True)
    _print(found)


def _told(ours: dict[str, float], theirs: dict[str, float]) -> str:
    return "; ".join(f"{kind} {ours[kind]:.1f} / {theirs[kind]:.1f}" for kind in KINDS)


def _print(found: dict[int, list[tuple[dict[str, float], dict[str, float]]]]) -> None:
    rows, own = list[tuple[object, ...]](), list[tuple[object, ...]]()
    for width, pairs in found.items():
        for kind, text in KINDS.items():
            ratios = [ours[kind] / theirs[kind] for ours, theirs in pairs]
            rates = (spread([ours[kind] for ours, _ in pairs]), spread([theirs[kind] for _, theirs in pairs]))
            rows.append((f"{width}, {text}", *rates, spread(ratios, 2), _goal(GOAL_PEER, width, kind, ratios)))
            if kind != NONE:
                shares = [ours[kind] / ours[NONE] for ours, _ in pairs]
                own.append((f"{width}, {text}", spread(shares, 2), _goal(GOAL_OWN, width, kind, shares)))
    table(("streams, system prompt", "here tok/s", "llama-server tok/s", "ratio", "goal"), rows)
    table(("streams, system prompt", "of our rate without it", "goal"), own)


def _goal(goal: tuple[int, float], width: int, kind: str, ratios: list[float]) -> str:
    """The goals are for a prompt that has been used once, as an app's has."""
    return verdict(median(ratios), goal[1], at_most=False) if (width, kind) == (goal[0], ONE) else ""
