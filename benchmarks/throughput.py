"""Throughput: tokens a second of some streams at once over HTTP, beside llama-server and the example server."""

import argparse
from statistics import mean, median
from typing import Final

from benchmarks import side_by_side
from benchmarks.load import Rate, apart, throughput
from benchmarks.report import spread, table, verdict
from benchmarks.side_by_side import NODE

TITLE: Final = "tokens a second of 1 to 16 streams over HTTP, beside llama-server and llama-cpp-python's example server"
GOAL: Final = 1.0  # of the better peer's, at every width


def arguments(parser: argparse.ArgumentParser) -> None:
    side_by_side.arguments(parser)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--tokens", type=int, default=96, help="that each stream generates at most (96)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16], help="at once (1 4 8 16)")


def run(options: argparse.Namespace) -> None:
    found: dict[int, list[dict[str, Rate]]] = {width: [] for width in options.streams}
    with side_by_side.running("throughput", options) as ports:
        print(f"each stream: a story of {options.tokens} tokens at most, temperature 0.7, not streamed")
        for port in ports.values():
            apart(throughput, port, 1, 8, 0)
        number, names = 1, list(ports)
        for turn in range(options.rounds):
            for width in options.streams:
                names = [*names[1:], names[0]]  # who goes first changes: a machine that warms up favours nobody
                found[width].append({it: apart(throughput, ports[it], width, options.tokens, number) for it in names})
                number += width
                told = ", ".join(f"{it} {found[width][-1][it].tokens_s:.1f}" for it in ports)
                print(f"   round {turn + 1}, {width} streams: {told}", flush=True)
    _print(found, list(ports))


def _print(found: dict[int, list[dict[str, Rate]]], names: list[str]) -> None:
    peers, rows = [name for name in names if name != NODE], []
    for width, rounds in found.items():
        row: list[object] = [width, *(spread([each[name].tokens_s for each in rounds]) for name in names)]
        if NODE in names and peers:
            ratios = [each[NODE].tokens_s / max(each[peer].tokens_s for peer in peers) for each in rounds]
            row += [spread(ratios, 3), verdict(median(ratios), GOAL, at_most=False)]
        rows.append(row)
    heads = ("of the better peer", "goal") if len(rows[0]) > len(names) + 1 else ()
    table(("streams", *(f"{name} tok/s" for name in names), *heads), rows)
    all_of_it = [rate for rounds in found.values() for each in rounds for rate in each.values()]
    print(f"the load generator used {mean(rate.cpu for rate in all_of_it):.1%} of a core\n")
