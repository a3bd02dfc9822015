"""Sessions: many of them under a small budget, resumed at random, beside computing them again, and llama-server."""

import argparse
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.chat import Answered, Messages, chat
from benchmarks.conversations import QUESTIONS, Conversation, Tokenizer, Tokens, documents, lengths, opening
from benchmarks.llama_server import LlamaServer
from benchmarks.machine import describe
from benchmarks.node import MODEL, BenchNode
from benchmarks.peer import SERVER, find_peer
from benchmarks.report import percentile, table, verdict
from tests.resident import Taken, Watch, taken, together

TITLE: Final = "first token of sessions resumed from arena and disk, beside computing them again and llama-server"
GOALS: Final = {"arena": 5.0, "disk": 15.0}  # percent of computing the same prompt
GOAL_LONG: Final = "a 1,500-token session"
BLOCK: Final = 4  # sessions that fit into the arena at once
FIRST_ANSWER: Final = 8  # tokens
ANSWER: Final = 16
SCRATCH: Final = 64  # tokens that a prompt computed from scratch may find: what the template begins with
MB: Final = 1_000_000
CONTEXT: Final = 2048
LOOK_S: Final = 0.25  # a look at the node's memory takes some milliseconds
SETTLE_S: Final = 2.0
CELLS: Final = 2560
SPEC: Final = """\
apiVersion: llmasos/v1
kind: Node
metadata: {{name: bench, site: bench}}
spec:
  memory: {{budget: %sMB, arena: %sMiB, swap: {{path: "{state}/swap", size: 5GiB}}}}
  sessions: {{quota: 100GiB}}
  mqtt: {{managed: true, port: 0}}
  models: [{{name: {model}, context: %s, kv_pool: %s, sequences: 4, exact: %s, pin: {pin}}}]
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sessions", type=int, default=300, help="conversations of 500 to 1,500 tokens (300)")
    parser.add_argument("--blocks", type=int, default=12, help=f"times {BLOCK} of them are resumed, twice each (12)")
    parser.add_argument("--settings", nargs="*", choices=("exact", "default"), default=["exact", "default"])
    parser.add_argument("--budget", type=int, default=400, metavar="MB", help="of the node, in all (400)")
    parser.add_argument("--arena", type=int, default=96, metavar="MIB", help="of that, for parked sessions (96)")
    parser.add_argument("--disk", type=float, default=90, metavar="MB/S", help="the rate of the swap file's disk (90)")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--peer", type=Path, metavar="PATH", help="a llama-server that is built already")
    parser.add_argument("--peer-sessions", type=int, default=40, help="the last so many are llama-server's too (40)")
    parser.add_argument(
        "--cache-ram", type=int, nargs="*", default=[8192], metavar="MIB", help="of llama-server (8192)"
    )


@dataclass(frozen=True, slots=True)
class Turn:
    """A resumed turn: where its state was, what was said until then, how it went on."""

    place: str
    long: bool
    messages: Messages
    seen: Answered


@dataclass(frozen=True, slots=True)
class Compared:
    """The same prompt computed from scratch, in the same node."""

    turn: Turn
    scratch: Answered

    @property
    def share(self) -> float:
        """The first token's time, in percent of that from scratch."""
        return self.turn.seen.first_ms / self.scratch.first_ms * 100


Row = tuple[object, ...]


def run(options: argparse.Namespace) -> None:
    peer = find_peer(SERVER, options.peer)
    describe("sessions")
    tokens = Tokens()
    print(f"{options.sessions} sessions of 500 to 1,500 tokens, each third of 1,500, seed {options.seed}; greedy")
    print(f"node: {options.budget} MB in all, arena {options.arena} MiB, swap 5 GiB, {CELLS} cells of q8_0 KV")
    print(f"disk: each read of the swap file, its page cache dropped before, takes as long as at {options.disk:g} MB/s")
    for setting in options.settings:
        _measure_node(options, tokens, setting)
    for cache in options.cache_ram:
        _measure_peer(options, tokens, peer, cache)


def _conversations(options: argparse.Namespace, tokens: Tokens, last: int) -> Iterator[tuple[Conversation, str]]:
    """The last so many sessions, each with its first turn; they are the same in each run."""
    text = documents()
    sizes = lengths(options.sessions, options.seed)
    for number in range(max(0, options.sessions - last), options.sessions):
        size = sizes[number]
        conversation = Conversation(f"s{number}", long=size == max(sizes))
        yield conversation, opening(number, size, text, options.seed, tokens)


# ---- here


def _measure_node(options: argparse.Namespace, tokens: Tokens, setting: str) -> None:
    print(f"\n-- here, {'exact: true' if setting == 'exact' else 'exact: false, the default'}", flush=True)
    spec = SPEC % (options.budget, options.arena, CONTEXT, CELLS, str(setting == "exact").lower())
    with (
        BenchNode("benchmarks.slow_swap", str(options.disk), spec=spec) as node,
        Watch(node.process.pid, LOOK_S) as watch,
    ):
        trial = Trial(node)
        trial.fill(_conversations(options, tokens, options.sessions))
        filled = _settled(node)
        found = list(trial.resume(options.blocks, random.Random(options.seed)))
        resumed = _settled(node)
    print_times(found)
    print_answers(found, tokens, exact=setting == "exact")
    _print_written(filled, resumed, options.sessions, len(found))
    _print_memory(together(iter(watch.peak.values())), filled, options.budget)


def _settled(node: BenchNode) -> dict[str, Any]:
    """What `llmasos mem` tells, once nothing more is being written."""
    found: dict[str, Any] = node.call("mem")
    while True:
        time.sleep(SETTLE_S)
        before, found = found, node.call("mem")
        if before["swap"]["written"] == found["swap"]["written"]:
            return found


class Trial:
    """The sessions of one node."""

    def __init__(self, node: BenchNode) -> None:
        self._node = node
        self._sessions: list[Conversation] = []
        self._swap = os.open(node.state / "swap" / "segments", os.O_RDONLY)

    def fill(self, conversations: Iterator[tuple[Conversation, str]]) -> None:
        began, prompts = time.perf_counter(), 0
        for conversation, text in conversations:
            seen = chat(self._node, conversation.ask(text), FIRST_ANSWER, conversation.name)
            conversation.answered(seen.text)
            self._sessions.append(conversation)
            prompts += seen.prompt
            if len(self._sessions) % 10 == 0:
                rate = prompts / (time.perf_counter() - began)
                print(f"   {len(self._sessions)} sessions, {prompts} tokens, {rate:.0f} tok/s", flush=True)

    def resume(self, blocks: int, chance: random.Random) -> Iterator[Compared]:
        """Some that are on the disk; the same ones again, from the arena; then all these prompts from scratch.

        What is computed from scratch stays in the cells for a while: so who was in a block is left out of the next one,
        and a conversation's two prompts are computed far from each other.
        """
        before: list[Conversation] = []
        for number in range(blocks):
            places = self._places()
            away = [each for each in self._sessions if each not in before and places[each.name] == "swapped"]
            before = chance.sample(away, min(BLOCK, len(away)))
            turns = [self._resume(each, chance) for each in (*before, *before)]
            found = [Compared(turn, chat(self._node, turn.messages, ANSWER)) for turn in turns]
            print(
                f"   block {number + 1}: {' '.join(f'{each.turn.place} {each.share:.1f} %' for each in found)}",
                flush=True,
            )
            yield from found

    def _resume(self, conversation: Conversation, chance: random.Random) -> Turn:
        os.posix_fadvise(self._swap, 0, 0, os.POSIX_FADV_DONTNEED)
        place = "disk" if self._places()[conversation.name] == "swapped" else "arena"
        turn = conversation.ask(chance.choice(QUESTIONS))
        said = tuple(conversation.messages)
        seen = chat(self._node, turn, ANSWER, conversation.name)
        conversation.answered(seen.text)
        return Turn(place, conversation.long, said, seen)

    def _places(self) -> dict[str, str]:
        """Where each session's state is."""
        return {row["session"]: row["state"] for row in self._node.call("sessions")}


# ---- llama-server


def _measure_peer(options: argparse.Namespace, tokens: Tokens, binary: Path, cache: int) -> None:
    """The last sessions' first turns, then as many resumed turns as here, of sessions at random."""
    flags = ("--cache-ram", str(cache), "--cache-reuse", "256", "-np", "4", "-c", str(4 * CONTEXT))
    with LlamaServer(binary, flags) as server:
        print(f"\n-- llama-server {' '.join(server.flags)}", flush=True)
        sessions, fresh = list[Conversation](), dict[bool, list[float]]()
        for conversation, text in _conversations(options, tokens, options.peer_sessions):
            conversation.ask(text)
            seen = server.chat(conversation.messages, FIRST_ANSWER)
            conversation.answered(seen.text)
            fresh.setdefault(conversation.long, []).append(seen.first_ms)
            sessions.append(conversation)
        print(f"   {len(sessions)} sessions", flush=True)
        chance = random.Random(options.seed)
        resumed = [_resume_at_peer(server, chance.choice(sessions), chance) for _ in range(options.blocks * BLOCK)]
        _print_peer(resumed, fresh.get(True, []), together(iter(taken(server.process.pid).values())))


def _resume_at_peer(server: LlamaServer, conversation: Conversation, chance: random.Random) -> Turn:
    conversation.ask(chance.choice(QUESTIONS))
    said = tuple(conversation.messages)
    seen = server.chat(said, ANSWER)
    conversation.answered(seen.text)
    return Turn("cache" if seen.cached > SCRATCH else "nowhere", conversation.long, said, seen)


# ---- tables


def print_times(found: Sequence[Compared]) -> None:
    scratch = [each for each in found if each.scratch.cached <= SCRATCH]
    rows: list[Row] = []
    for place, goal in GOALS.items():
        for name, wanted in ((GOAL_LONG, True), ("all", False)):
            mine = [each for each in scratch if each.turn.place == place and each.turn.long >= wanted]
            if len(mine) > 1:
                met = verdict(round(percentile([each.share for each in mine], 99), 1), goal, at_most=True)
                rows.append(_times_row(f"from the {place}, {name}", mine, met if wanted else ""))
    table(("resumed", "n", "first token ms: p50, p99", "from scratch ms: p50", "share %: p50, p99", "goal, p99"), rows)


def _times_row(name: str, mine: Sequence[Compared], goal: str) -> Row:
    firsts, anew = [each.turn.seen.first_ms for each in mine], [each.scratch.first_ms for each in mine]
    shares = _tails([each.share for each in mine])
    return (name, len(mine), _tails(firsts), f"{percentile(anew, 50):.0f}", shares, goal)


def _tails(values: Sequence[float]) -> str:
    return f"{percentile(values, 50):.1f}, {percentile(values, 99):.1f}"


def print_answers(found: Sequence[Compared], tokenizer: Tokenizer, *, exact: bool) -> None:
    """How far each resumed session went on as one whose whole prompt was computed just now, in memory."""
    other = [each for each in found if each.turn.seen.text != each.scratch.text]
    same = sum(agreed(tokenizer.of(each.turn.seen.text), tokenizer.of(each.scratch.text)) for each in found)
    prompts = sum(each.turn.seen.prompt != each.scratch.prompt for each in found)
    rate = len(other) / max(1, same + len(other)) * 100
    rows: list[Row] = [
        ("answers that differ", f"{len(other)} of {len(found)}", verdict(len(other), 0, at_most=True) if exact else ""),
        (
            "greedy tokens that changed, until an answer's first",
            f"{len(other)} of {same + len(other)}: {rate:.2f} %",
            "",
        ),
        ("prompts that were tokenised otherwise", prompts, ""),
    ]
    table(("resumed beside computed from scratch", "", "goal"), rows)


def agreed(one: Sequence[int], other: Sequence[int]) -> int:
    length = min(len(one), len(other))
    return next((at for at in range(length) if one[at] != other[at]), length)


def _print_written(filled: dict[str, Any], resumed: dict[str, Any], sessions: int, turns: int) -> None:
    first, later = filled["swap"]["written"], resumed["swap"]["written"]
    rows: list[Row] = [
        ("first turns", sessions, f"{first / max(1, sessions) / MB:.2f}"),
        ("resumed turns", turns, f"{(later - first) / max(1, turns) / MB:.3f}"),
    ]
    table(("written to the swap file", "n", "MB a turn"), rows)


def _print_memory(greatest: Taken, mem: dict[str, Any], budget: int) -> None:
    parts = ("anonymous", "shared", "kernel", "weights")
    rows: list[Row] = [(f"  {name}", f"{getattr(greatest, name) / MB:.1f}", "") for name in parts]
    whole = greatest.total / MB
    rows.insert(0, ("the node's peak", f"{whole:.1f}", verdict(round(whole, 1), budget, at_most=True)))
    rows.append(("what the ledger charged", f"{mem['charged'] / MB:.1f}", ""))
    rows.append((f"  {MODEL}", f"{sum(each['charged'] for each in mem['models']) / MB:.1f}", ""))
    table(("memory", "MB", "goal"), rows)


def _print_peer(turns: Sequence[Turn], fresh: Sequence[float], memory: Taken) -> None:
    rows: list[Row] = []
    scratch = percentile([*fresh, *fresh], 50) if fresh else 0.0
    for name, fits in _kinds():
        mine = [turn.seen.first_ms for turn in turns if fits(turn)]
        if len(mine) > 1:
            shares = _tails([each / scratch * 100 for each in mine]) if scratch and "1,500" in name else ""
            rows.append((name, len(mine), _tails(mine), shares))
    table(("resumed", "n", "first token ms: p50, p99", "share of a first turn's p50, %"), rows)
    parts = (("anonymous", memory.anonymous), ("weights", memory.weights), ("in all, with kernel", memory.total))
    table(("llama-server's memory at the end", "MB"), [(name, f"{size / MB:.1f}") for name, size in parts])


def _kinds() -> Sequence[tuple[str, Callable[[Turn], bool]]]:
    return (
        (f"{GOAL_LONG}, all", lambda turn: turn.long),
        (f"{GOAL_LONG}, found in a cache", lambda turn: turn.long and turn.place == "cache"),
        ("all", lambda _: True),
        ("all, found in a cache", lambda turn: turn.place == "cache"),
        ("all, found nowhere", lambda turn: turn.place == "nowhere"),
    )
