"""Urgent: the first token of an urgent request while many streams run, over HTTP, beside the same two peers."""

import argparse
from statistics import mean, median
from typing import Final

from benchmarks import side_by_side
from benchmarks.llama_server import LlamaServer
from benchmarks.load import Plan, Rate, Urgent, apart, throughput, urgent
from benchmarks.report import percentile, table, verdict
from benchmarks.side_by_side import NODE

TITLE: Final = (
    "urgent requests under 8, 32 and 256 background streams over HTTP, beside llama-server and the example server"
)
GOAL_MEDIAN: Final = 2.0  # times idle
GOAL_P95: Final = 4.0
GOAL_IDLE: Final = 1.2  # times llama-server's
GOAL_SHARE: Final = 0.9  # of what it is without the urgent ones, and of the better peer's


def arguments(parser: argparse.ArgumentParser) -> None:
    side_by_side.arguments(parser)
    parser.add_argument("--background", type=int, nargs="+", default=[8, 32, 256], help="streams (8 32 256)")
    parser.add_argument("--urgent", type=int, default=50, help="urgent requests here (50)")
    parser.add_argument("--peer-urgent", type=int, default=10, help="the same for the peers (10)")
    parser.add_argument("--bg-tokens", type=int, default=256, help="that an answer of the background has at most (256)")
    parser.add_argument("--idle", type=int, default=10, help="urgent requests on the idle server before (10)")
    parser.add_argument("--gap", type=float, default=1.0, metavar="S", help="between urgent requests (1)")
    parser.add_argument("--quiet", type=float, default=10.0, metavar="S", help="of each window without them (10)")
    parser.add_argument("--patience", type=float, default=60.0, metavar="S", help="until one is given up (60)")


def run(options: argparse.Namespace) -> None:
    found: dict[int, dict[str, Urgent]] = {width: {} for width in options.background}
    with side_by_side.running("urgent", options) as ports:
        print(f"background: stories of {options.bg_tokens} tokens at most, without a pause, service_tier flex; urgent:")
        print(f"service_tier priority, {options.gap:g} s apart; both temperature 0.7, streamed", flush=True)
        sizes = {name: _character_rate(port) for name, port in ports.items()}
        for turn, width in enumerate(options.background):
            for name, port in ports.items():
                found[width][name] = apart(urgent, port, _plan(options, width, name, turn))
                _show(width, name, found[width][name])
    _print(found, sizes)
    for width, told in found.items():
        _print_goals(width, told)


def _plan(options: argparse.Namespace, width: int, name: str, turn: int) -> Plan:
    return Plan(
        background=width,
        tokens=options.bg_tokens,
        urgent=options.urgent if name == NODE else options.peer_urgent,
        idle=options.idle,
        gap_s=options.gap,
        quiet_s=options.quiet,
        patience_s=options.patience,
        number=100_000 * turn,  # no prompt comes twice
    )


def _character_rate(port: int) -> Rate:
    """How many characters a token has in whole answers, as the server counts: streams are counted by their text."""
    return apart(throughput, port, 8, 96, 900_000)


def _show(width: int, name: str, told: Urgent) -> None:
    loaded = f"{median(told.loaded_ms):.0f} ms" if told.loaded_ms else "none"
    failed = f"; {len(told.failures)} failed: {told.failures[0]}" if told.failures else ""
    print(f"   {width} streams, {name}: idle {median(told.idle_ms):.0f} ms, loaded {loaded}{failed}", flush=True)


def _print(found: dict[int, dict[str, Urgent]], sizes: dict[str, Rate]) -> None:
    rows = []
    for width, servers in found.items():
        for name, told in servers.items():
            quiet, shared = (mean(it) / sizes[name].characters for it in (told.quiet, told.shared))
            loaded = [*told.loaded_ms, *[float("inf")] * told.given_up]
            times = (median(told.idle_ms), median(loaded), _p95(loaded), max(loaded))
            told_ms = (f"{each:.0f}" if each < float("inf") else "none" for each in times)
            streams = (f"{told.begun} of {width}", len(told.failures), f"{told.cpu:.1%}")
            rows.append((f"{width}, {name}", *told_ms, len(loaded), f"{quiet:.1f}", f"{shared:.1f}", *streams))
    urgent_heads = ("idle ms: median", "loaded: median", "p95", "most", "of")
    heads = ("background tok/s without", "with", "begun", "failed", "generator's CPU")
    table(("streams", *urgent_heads, *heads), rows)


def _p95(times: list[float]) -> float:
    return percentile(times, 95) if len(times) > 1 and max(times) < float("inf") else max(times)


def _print_goals(width: int, servers: dict[str, Urgent]) -> None:
    here = servers.get(NODE)
    if here is None or not here.loaded_ms or here.given_up:
        return
    idle = median(here.idle_ms)
    share = median(shared / quiet for shared, quiet in zip(here.shared, here.quiet, strict=True))
    rows = [
        ("median, times idle", median(here.loaded_ms) / idle, GOAL_MEDIAN, True),
        ("p95, times idle", _p95(here.loaded_ms) / idle, GOAL_P95, True),
        ("background, of that without urgent ones", share, GOAL_SHARE, False),
    ]
    peers = {name: told for name, told in servers.items() if name != NODE}
    if LlamaServer.name in peers:
        rows.append(("idle, times llama-server's", idle / median(peers[LlamaServer.name].idle_ms), GOAL_IDLE, True))
    if peers:
        best = max(mean(told.shared) for told in peers.values())
        rows.append(("background, of the better peer's (characters)", mean(here.shared) / best, GOAL_SHARE, False))
    goals = [(name, f"{value:.2f}", verdict(value, goal, at_most=at_most)) for name, value, goal, at_most in rows]
    table((f"{width} streams, here", "measured", "goal"), goals)
