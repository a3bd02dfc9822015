"""Placement: first, best and worst fit over the same turns of sessions: fragmentation, failures, cost of compaction.

The turns are generated, from a seed: sessions of 500 to 1,500 tokens, of which each turn adds 50 to 400 as a segment of
its own (the first turn at least 250); 12.3 kB a token (SmolLM2-135M, q8_0). A turn is of one of the 30 sessions that
were used last in four cases of five, else of any of 300; a session that is full begins anew. A segment is allocated for
64 tokens more than it has, and trimmed when it is saved. When it finds no place, whole sessions are dropped, the least
recently used first. With compaction, the node is idle after every fourth turn, and moves at most 32 MiB.
"""

import argparse
import random
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Final

from benchmarks.machine import describe
from benchmarks.report import table
from llmasos_edge.kernel.memory.arena import Arena
from llmasos_edge.kernel.memory.compaction import plan
from llmasos_edge.kernel.memory.extent import Extent
from llmasos_edge.kernel.memory.fit import FITS
from llmasos_edge.kernel.units import Bytes

TITLE: Final = "first, best and worst fit over the same sessions: fragmentation, failed allocations, compaction's cost"
MIB: Final = 1 << 20
TOKEN: Final = 12_300  # bytes
LEASE: Final = 64  # tokens that a save may hold more than it does
SESSIONS: Final = 300
RECENT: Final = 30
IDLE: Final = Bytes(32 * MIB)
SIZES: Final = (64, 256, 2048)  # MiB: the default arena, a larger one, a swap file


@dataclass(frozen=True, slots=True)
class Turn:
    """`tokens` are added to a session; `first`: it begins anew."""

    session: int
    tokens: int
    first: bool


@dataclass(slots=True)
class Result:
    """Of one replay. `scattered`: failed, although there was room enough, but not in one piece; `dropped` sessions."""

    fragmentation: float
    failed: int
    scattered: int
    dropped: int
    moved: int
    turn_us: float


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--turns", type=int, default=5000, metavar="N", help="in each replay (5000)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="replays of each kind (5)")


def run(options: argparse.Namespace) -> None:
    describe("fit")
    traces = [make_trace(random.Random(seed), options.turns) for seed in range(options.seeds)]
    print(f"{options.seeds} traces of {options.turns} turns, the second half of each counted; per 1,000 turns:\n")
    thousands = options.turns / 2000
    for size in SIZES:
        rows = []
        for fit in FITS:
            for compact in (False, True):
                results = [replay(trace, fit, size * MIB, compact=compact) for trace in traces]
                rows.append((f"{fit}{', compacted' if compact else ''}", *_figures(results, thousands)))
        table((f"{size} MiB", "fragmentation", "failed", "scattered", "dropped", "MiB moved", "us a turn"), rows)


def _figures(results: Sequence[Result], thousands: float) -> tuple[str, ...]:
    return (
        f"{mean(result.fragmentation for result in results):.3f}",
        f"{mean(result.failed for result in results) / thousands:.0f}",
        f"{mean(result.scattered for result in results) / thousands:.0f}",
        f"{mean(result.dropped for result in results) / thousands:.0f}",
        f"{mean(result.moved for result in results) / thousands / MIB:.0f}",
        f"{mean(result.turn_us for result in results):.1f}",
    )


def make_trace(choose: random.Random, turns: int) -> list[Turn]:
    """See above."""
    limit = [0] * SESSIONS
    length = [0] * SESSIONS
    recent: OrderedDict[int, None] = OrderedDict()
    trace = []
    for _ in range(turns):
        session = choose.choice(list(recent)) if recent and choose.random() < 0.8 else choose.randrange(SESSIONS)
        first = length[session] >= limit[session]
        if first:
            limit[session], length[session] = choose.randint(500, 1500), 0
        tokens = choose.randint(250 if first else 50, 400)
        length[session] += tokens
        trace.append(Turn(session, tokens, first))
        recent[session] = None
        recent.move_to_end(session)
        if len(recent) > RECENT:
            recent.popitem(last=False)
    return trace


class _Node:
    """An arena, and the sessions in it, the least recently used first."""

    def __init__(self, fit: str, size: int) -> None:
        self.arena = Arena(Bytes(size), fit)
        self._sessions: OrderedDict[int, list[Extent]] = OrderedDict()
        self.result = Result(0.0, 0, 0, 0, 0, 0.0)

    def turn(self, turn: Turn) -> None:
        if turn.first or turn.session not in self._sessions:  # what was dropped is saved from its next turn on
            self._drop(turn.session)
            self._sessions[turn.session] = []
        self._sessions.move_to_end(turn.session)
        wanted = Bytes((turn.tokens + LEASE) * TOKEN)
        extent = self.arena.allocate(wanted)
        if extent is None:
            self.result.failed += 1
            self.result.scattered += self.arena.size - self.arena.statistics().used >= wanted
        while extent is None:
            self._drop(next(iter(self._sessions)))
            self.result.dropped += 1
            extent = self.arena.allocate(wanted)
        self._sessions[turn.session].append(self.arena.trim(extent, Bytes(turn.tokens * TOKEN)))

    def _drop(self, session: int) -> None:
        for extent in self._sessions.pop(session, []):
            self.arena.free(extent)

    def compact(self) -> None:
        """What an idle moment is for."""
        where = {extent: (extents, at) for extents in self._sessions.values() for at, extent in enumerate(extents)}
        for move in plan(self.arena, where, IDLE, overlapping=True):
            self.arena.open_move(move)
            self.arena.close_move(move, moved=True)
            extents, at = where[move.target] = where.pop(move.source)
            extents[at] = move.target
            self.result.moved += move.source.size


def replay(trace: Sequence[Turn], fit: str, size: int, *, compact: bool) -> Result:
    """The first half of the trace fills the arena; the second is counted."""
    node = _Node(fit, size)
    half = len(trace) // 2
    for number, turn in enumerate(trace):
        if number == half:
            node.result = Result(0.0, 0, 0, 0, 0, 0.0)
        began = time.perf_counter()
        node.turn(turn)
        node.result.turn_us += (time.perf_counter() - began) * 1e6 / half
        node.result.fragmentation += node.arena.statistics().fragmentation / half
        if compact and number % 4 == 0:
            node.compact()
    node.arena.check_invariants()
    return node.result
