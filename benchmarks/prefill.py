"""Prefill beside decoding: a long prompt joins streams; how long these pause, and how long it waits for its answer."""

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.conversations import Tokens, documents, opening
from benchmarks.llama_server import LlamaServer
from benchmarks.machine import describe
from benchmarks.node import BenchNode
from benchmarks.peer import SERVER, find_peer
from benchmarks.report import spread, table, verdict
from benchmarks.stream import Deltas, Stream, node_deltas

TITLE: Final = "a long prompt joins decoding streams: their longest pause, and its first token, beside llama-server"
TARGET_MS: Final = 150  # decode_target_ms, as node files have it unless they say otherwise
GOAL: Final = 1.5  # of it
QUIET_S: Final = 2.0
STREAM_TOKENS: Final = 600
SEED: Final = 5
Ask = Callable[[str, int], Deltas]


@dataclass(frozen=True, slots=True)
class Seen:
    """One round, in milliseconds: the longest pauses of any stream, and the prompt's first token."""

    quiet: float
    beside: float
    first: float


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", type=Path, metavar="PATH", help="a llama-server that is built already")
    parser.add_argument("--rounds", type=int, default=10, help="interleaved rounds (10)")
    parser.add_argument("--streams", type=int, default=8, metavar="N", help="that decode (8)")
    parser.add_argument("--prompt", type=int, default=1500, metavar="TOKENS", help="that joins them (1500)")


def run(options: argparse.Namespace) -> None:
    peer, measure, text = find_peer(SERVER, options.peer), Tokens(), documents()
    describe("prefill")
    width = options.streams + 1
    flags = ("-np", str(width), "-c", str(width * 2048), "--cache-ram", "0")
    print(f"{options.streams} streams decode, a prompt of {options.prompt} tokens joins; decode_target_ms {TARGET_MS}")
    print(f"peer: {peer.name} {' '.join(flags)}", flush=True)
    found: dict[str, list[Seen]] = {"here": [], peer.name: []}
    with BenchNode() as node, LlamaServer(peer, flags) as server:
        asks: dict[str, Ask] = {
            "here": lambda prompt, tokens: node_deltas(node, _body(prompt, tokens)),
            peer.name: server.deltas,
        }
        for number in range(options.rounds):
            prompt = opening(number, options.prompt, text, SEED, measure)
            for name in list(asks)[:: -1 if number % 2 else 1]:
                seen = _round(asks[name], prompt, options.streams)
                found[name].append(seen)
                print(f"   round {number + 1}, {name}: pause {seen.beside:.0f} ms, first token {seen.first:.0f} ms")
    _print(found)


def _body(prompt: str, tokens: int) -> dict[str, object]:
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0}


def _round(ask: Ask, prompt: str, width: int) -> Seen:
    counts = (", ".join(str(each) for each in range(100 * n, 100 * n + 12)) + "," for n in range(1, width + 1))
    with ExitStack() as stack:
        streams = [stack.enter_context(Stream(ask(count, STREAM_TOKENS))) for count in counts]
        began = max(each.first() for each in streams)
        time.sleep(QUIET_S)
        sent = time.perf_counter()
        with Stream(ask(prompt, 8)) as joining:
            first = joining.first()
    quiet = max(max(each.gaps(began, sent)) for each in streams)
    return Seen(quiet, max(max(each.gaps(sent, first)) for each in streams), (first - sent) * 1000)


def _print(found: dict[str, list[Seen]]) -> None:
    rows = [
        (
            name,
            spread([each.quiet for each in rounds], 0),
            spread([each.beside for each in rounds], 0),
            spread([each.first for each in rounds], 0),
        )
        for name, rounds in found.items()
    ]
    table(("ms, median (least .. greatest)", "longest pause before", "while it is read", "its first token"), rows)
    pause = median(each.beside for each in found["here"]) / TARGET_MS
    print(f"longest pause / decode_target_ms: {pause:.2f}, {verdict(pause, GOAL, at_most=True)}\n", flush=True)
