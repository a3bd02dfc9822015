"""Worker: leases, the abort byte, the front thread, park and restore, a context made anew, an alarm's admission."""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Final

from benchmarks.machine import describe
from benchmarks.report import percentile, spread, table
from benchmarks.rig import ENDLESS_MS, Rig, prompt_of
from llmasos_edge.kernel.hal import Report, Resized, Restored
from llmasos_edge.kernel.memory.extent import Extent
from llmasos_edge.kernel.units import Bytes, TaskId, Tokens

TITLE: Final = (
    "one worker, driven directly: leases, aborts, front thread, park and restore, resize, an alarm's first token"
)
LEASE_MS: Final = 200
TAIL: Final = 200
SHARED: Final = 750
ROOM: Final = Extent(0, Bytes(32 << 20))
BACKGROUND: Final = tuple(f"background{number}" for number in range(8))
Row = tuple[str, str, str]
ALARM: Final = (
    "Smoke in the kitchen, 61 C, carbon monoxide 120 ppm, nobody at home. The first thing that people must do is"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (5)")
    parser.add_argument("--aborts", type=int, default=100, help="aborted steps (100)")


def run(options: argparse.Namespace) -> None:
    describe("worker")
    with Rig() as rig:
        rows = []
        for row in _rows(rig, options):
            print(f"   {row[0]}: {row[1]}", flush=True)
            rows.append(row)
    print()
    table(("what", "median (least .. greatest)", "beside"), rows)


def _rows(rig: Rig, options: argparse.Namespace) -> Iterator[Row]:
    yield _leases(rig, options.rounds)
    yield _crowded(rig, options.rounds)
    yield _aborts(rig, options.aborts)
    yield _front(rig, 4 * options.rounds)
    for tokens in (600, 1500):
        yield from _park(rig, tokens, options.rounds)
        yield _resize(rig, tokens, options.rounds)
    yield _shared(rig, options.rounds)
    yield from _alarm(rig, 3 * options.rounds)


# ---- leases


def _leases(rig: Rig, rounds: int) -> Row:
    """One task: a lease that is renewed when half of it is over, beside one that never ends."""
    rig.prepare("lease", _count(100))
    rig.switch_in("lease", 0)
    rig.compute("lease", decode=8)
    ratios = []
    for number in range(rounds):
        order = (None, LEASE_MS / 2000) if number % 2 else (LEASE_MS / 2000, None)
        rates = {renew_s: _rate(rig, renew_s) for renew_s in order}
        ratios.append(rates[LEASE_MS / 2000] / rates[None])
    rig.forget("lease")
    return f"tok/s of renewed {LEASE_MS} ms leases / of one lease", spread(ratios, 3), f"{rounds} pairs of 100 tokens"


def _crowded(rig: Rig, rounds: int) -> Row:
    """One task alone, and beside a process that keeps a core busy, once its threads have found that out."""
    rig.prepare("crowded", _count(100))
    rig.switch_in("crowded", 0)
    rig.compute("crowded", decode=8)
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(_rate(rig, None))
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
            rig.compute("crowded", decode=20)
            beside.append(_rate(rig, None))
            busy.kill()
    rig.forget("crowded")
    ratios = [one / other for one, other in zip(beside, alone, strict=True)]
    return "tok/s beside a busy process / alone", spread(ratios, 3), f"{spread(beside)} tok/s"


def _rate(rig: Rig, renew_s: float | None) -> float:
    """Tokens a second between the first report and the one that completes 100 tokens."""
    lease_ms = ENDLESS_MS if renew_s is None else LEASE_MS
    granted, points = time.perf_counter(), list[tuple[float, int]]()
    rig.grant("lease", ms=lease_ms)

    def enough(report: Report) -> bool:
        nonlocal granted
        now = time.perf_counter()
        points.extend((now, progress.generated) for progress in report.progress)
        if renew_s is not None and now - granted >= renew_s:
            granted = now
            rig.grant("lease", ms=lease_ms)
        return bool(points) and points[-1][1] - points[0][1] >= 100

    rig.wait(Report, enough)
    rig.settle()
    (began, first), (ended, last) = points[0], points[-1]
    return (last - first) / (ended - began)


# ---- interrupts


def _aborts(rig: Rig, count: int) -> Row:
    """From the interrupt, after the command that it makes way for, to the report of the aborted step."""
    rig.prepare("prefill", prompt_of(rig, 512))
    rig.switch_in("prefill", 0)
    whole = rig.compute("prefill", decode=1)[0]
    rig.host.switch_out(TaskId("prefill"), None)
    waits = []
    for number in range(count):
        rig.switch_in("prefill", 0)
        rig.grant("prefill")
        time.sleep(whole * (0.05 + 0.5 * number / count))
        rig.host.switch_out(TaskId("prefill"), None)
        sent = time.perf_counter()
        rig.host.interrupt()
        waits.append((rig.wait(Report, lambda it: it.aborted)[0] - sent) * 1000)
        rig.settle()
    rig.forget("prefill")
    beside = f"p99 {percentile(waits, 99):.1f} ms of {count}; the step takes {whole * 1000:.0f} ms"
    return "abort of a 512-token step, ms", spread(waits), beside


# ---- the front thread


def _front(rig: Rig, count: int) -> Row:
    """A prompt tokenised while the compute thread is in a long step, and while it is idle."""
    idle, busy = [], []
    long = prompt_of(rig, 1500)
    rig.prepare("long", long)
    for number in range(count):
        idle.append(_prepare_ms(rig, f"idle{number}"))
        rig.switch_in("long", 0)
        rig.grant("long")
        time.sleep(0.05)
        busy.append(_prepare_ms(rig, f"busy{number}"))
        rig.host.switch_out(TaskId("long"), None)
        rig.host.interrupt()
        rig.settle()
    rig.forget("long")
    return "Prepare answered during a 512-token step, ms", spread(busy, 2), f"idle {spread(idle, 2)}"


def _prepare_ms(rig: Rig, name: str) -> float:
    took = rig.prepare(name, ALARM)[0] * 1000
    rig.forget(name)
    return took


# ---- park, restore, resize


def _park(rig: Rig, tokens: int, rounds: int) -> list[Row]:
    """A session's state out into the arena and back, beside computing its prompt anew."""
    rig.prepare("parked", prompt_of(rig, tokens))
    anew, parks, restores, tails, size = [], [], [], [], 0
    for _ in range(rounds):
        rig.switch_in("parked", 0)
        rig.settle()
        anew.append(rig.compute("parked", decode=1)[0] * 1000)
        took, piece = rig.save("parked", 0, ROOM)
        parks.append(took * 1000)
        size = piece.size
        sent = time.perf_counter()
        rig.switch_in("parked", 0, piece)
        restores.append((rig.wait(Restored)[0] - sent) * 1000)
        tails.append(rig.save("parked", tokens - TAIL, ROOM)[0] * 1000)
    rig.forget("parked")
    share = (median(parks) + median(restores)) / median(anew)
    beside = f"computed anew: {spread(anew, 0)} ms"
    return [
        (f"park of {tokens} tokens ({size / 1e6:.1f} MB), ms", spread(parks, 2), beside),
        (f"park of the last {TAIL} tokens alone, ms", spread(tails, 2), ""),
        (f"restore of {tokens} tokens, ms", spread(restores, 2), f"both: {share:.2%} of computing anew"),
    ]


def _resize(rig: Rig, tokens: int, rounds: int) -> Row:
    """Parked, the context made anew with half and whole the cells, and restored, in mid-answer; the answer must be the
    undisturbed one.
    """
    prompt, same = prompt_of(rig, tokens), True
    took: list[float] = []
    whole = _answer(rig, "undisturbed", prompt, [])
    for number in range(rounds):
        again = _answer(rig, f"resized{number}", prompt, took)
        same = same and again == whole
    identical = f"greedy continuation {'identical' if same else 'DIFFERS'}: {len(whole)} characters"
    return f"context made anew with {tokens} tokens in it, ms", spread(took), identical


def _answer(rig: Rig, name: str, prompt: str, took: list[float]) -> str:
    """24 tokens; between them, where `took` is not for the undisturbed one, the context is made anew twice."""
    rig.prepare(name, prompt)
    rig.switch_in(name, 0)
    text = rig.compute(name, decode=8)[1]
    if name != "undisturbed":
        for cells in (4096, 8192):
            parked, piece = rig.save(name, 0, ROOM)
            sent = time.perf_counter()
            rig.host.resize(Tokens(cells))
            rig.wait(Resized)
            rig.switch_in(name, 0, piece)
            took.append((parked + rig.wait(Restored)[0] - sent) * 1000)
    text += rig.compute(name, decode=16)[1]
    rig.forget(name)
    return text


# ---- shared prefixes


def _shared(rig: Rig, rounds: int) -> Row:
    """Eight tasks that decode at once behind the same long system prompt, and behind a short one."""
    ratios, rates = [], dict[int, list[float]]()
    for number in range(rounds):
        for tokens in (20, SHARED) if number % 2 else (SHARED, 20):
            rates.setdefault(tokens, []).append(_together(rig, prompt_of(rig, tokens)))
        ratios.append(rates[SHARED][-1] / rates[20][-1])
    beside = f"{spread(rates[SHARED])} and {spread(rates[20])} tok/s"
    return f"decode rate of 8 behind {SHARED} shared tokens / behind 20", spread(ratios, 3), beside


def _together(rig: Rig, system: str) -> float:
    """Tokens a second of eight tasks, after the first ones."""
    for number, name in enumerate(BACKGROUND):
        rig.prepare(name, _count(100 + 60 * number), system)
        rig.switch_in(name, number)
    rig.compute(*BACKGROUND, decode=1)
    sent, decoded, idle = time.perf_counter(), 0, False
    number = rig.grant(*BACKGROUND, decode=40)
    while not idle:
        moment, report = rig.wait(Report, lambda it: it.number == number)
        decoded, idle = decoded + report.decoded, report.idle
    rig.forget(*BACKGROUND)
    rig.settle()
    return decoded / (moment - sent)


# ---- an alarm


def _alarm(rig: Rig, rounds: int) -> list[Row]:
    """From the Prepare of an alarm to its first token: alone, and beside eight streams that decode."""
    for number, name in enumerate(BACKGROUND):
        rig.prepare(name, _count(100 + 60 * number))
        rig.switch_in(name, number)
    rig.compute(*BACKGROUND, decode=1)
    idle, busy = [], []
    for number in range(rounds):
        idle.append(_first_token_ms(rig, f"alone{number}", ()))
        rig.grant(*BACKGROUND)
        time.sleep(0.2)
        busy.append(_first_token_ms(rig, f"among{number}", BACKGROUND))
    rig.forget(*BACKGROUND)
    ratio = median(busy) / median(idle)
    return [
        ("first token of an alarm, alone, ms", spread(idle), ""),
        ("first token of an alarm, beside 8 streams, ms", spread(busy), f"{ratio:.2f} times as long"),
    ]


def _first_token_ms(rig: Rig, name: str, others: tuple[str, ...]) -> float:
    sent = time.perf_counter()
    rig.prepare(name, ALARM)
    rig.switch_in(name, len(BACKGROUND))
    rig.grant(name, *others)
    took = rig.first_token(name) - sent
    rig.forget(name)
    rig.settle()
    return took * 1000


def _count(start: int) -> str:
    """A text that the model goes on with for ever."""
    return ", ".join(str(each) for each in range(start, start + 12)) + ","
