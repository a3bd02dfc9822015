"""Decode: the generation rate that a control-socket client sees, beside llama-batched-bench's."""

import argparse
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.machine import describe
from benchmarks.node import BenchNode, model_file
from benchmarks.peer import BATCHED_BENCH, find_peer, run_peer
from benchmarks.report import spread, table, verdict

TITLE: Final = "tokens a second at a control-socket client, 1, 4 and 8 tasks at once, beside llama-batched-bench"
GOAL: Final = 0.93
PROMPT_NUMBERS: Final = 12  # a count is a text that the model goes on with for ever


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", type=Path, metavar="PATH", help="a llama-batched-bench that is built already")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs of each width (5)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens that each task generates (128)")
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 4, 8], help="tasks at once (1 4 8)")
    parser.add_argument("--unified", action="store_true", help="the peer too has one KV buffer for all sequences")


@dataclass(slots=True)
class Seen:
    """One task as its client saw it; moments in seconds."""

    first: float = 0.0
    last: float = 0.0
    prompt: int = 0
    generated: int = 0


def _ask(node: BenchNode, number: int, tokens: int, seen: Seen, start: threading.Barrier) -> None:
    prompt = ", ".join(str(each) for each in range(number, number + PROMPT_NUMBERS))
    body = {"prompt": f"{prompt},", "max_tokens": tokens, "temperature": 0}
    with node.client() as client:
        start.wait()
        stream = client.stream("submit", op="generate", body=body)
        for event in stream:
            if "delta" in event:
                seen.last = time.perf_counter()
                seen.first = seen.first or seen.last
        usage = stream.result["usage"]
        seen.prompt, seen.generated = usage["prompt_tokens"], usage["completion_tokens"]


def _ask_all(node: BenchNode, width: int, tokens: int) -> list[Seen]:
    """`width` tasks at once, over a connection each."""
    seen = [Seen() for _ in range(width)]
    start = threading.Barrier(width)
    threads = [
        threading.Thread(target=_ask, args=(node, 100 + 60 * number, tokens, each, start))
        for number, each in enumerate(seen)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def _rate(node: BenchNode, width: int, tokens: int) -> tuple[float, int]:
    """Tokens a second from the very first one to the very last one of all tasks; and the length of their prompts.

    The prompts are computed before, by tasks of one token each: batched-bench leaves prefill out as well.
    """
    _ask_all(node, width, 1)
    seen = _ask_all(node, width, tokens)
    short = [each.generated for each in seen if each.generated != tokens]
    if short:
        sys.exit(f"benchmarks: a task ended after {short[0]} of {tokens} tokens: choose fewer with --tokens")
    seconds = max(each.last for each in seen) - min(each.first for each in seen)
    return width * (tokens - 1) / seconds, seen[0].prompt


def run(options: argparse.Namespace) -> None:
    peer, model = find_peer(BATCHED_BENCH, options.peer), model_file()
    describe("decode")
    threads = str(len(os.sched_getaffinity(0)))
    # --no-repack: weights mapped as they are in the file, as here
    flags = ["-t", threads, "-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0", "-b", "512", "-ub", "512", "--no-repack"]
    flags += ["--kv-unified"] if options.unified else []
    pairs: dict[int, list[tuple[float, float]]] = {width: [] for width in options.widths}
    with BenchNode() as node:
        prompt = _rate(node, 1, 2)[1]
        print(f"each task: {prompt} prompt tokens, {options.tokens} generated, greedy; threads {threads}, KV q8_0")
        print(f"peer: {peer.name} {' '.join(flags)}", flush=True)
        for number in range(options.pairs):
            for width in options.widths:
                lengths = (prompt, options.tokens, width)
                # who goes first alternates, so that a machine that slows down or warms up favours nobody
                if number % 2:
                    theirs = run_peer(peer, model, lengths, flags)["speed_tg"]
                ours, _ = _rate(node, width, options.tokens)
                if number % 2 == 0:
                    theirs = run_peer(peer, model, lengths, flags)["speed_tg"]
                pairs[width].append((ours, theirs))
                print(
                    f"   pair {number + 1}, {width} tasks: {ours:.1f} / {theirs:.1f} = {ours / theirs:.3f}", flush=True
                )
    rows = [_row(width, found) for width, found in pairs.items()]
    table(("tasks", "here tok/s", "peer tok/s", "ratio: median (least .. greatest)", "goal"), rows)


def _row(width: int, pairs: list[tuple[float, float]]) -> tuple[object, ...]:
    ratios = [ours / theirs for ours, theirs in pairs]
    rates = (spread([ours for ours, _ in pairs]), spread([theirs for _, theirs in pairs]))
    return (width, *rates, spread(ratios, 3), verdict(median(ratios), GOAL, at_most=False))
