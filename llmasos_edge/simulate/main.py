"""The command `llmasos-simulate`: replays a workload under one policy or all of them, side by side."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from llmasos_edge import __version__
from llmasos_edge.errors import ConfigError
from llmasos_edge.kernel.scheduling.policies import POLICIES
from llmasos_edge.services import workload
from llmasos_edge.services.workload import Workload
from llmasos_edge.simulate import generate, tables
from llmasos_edge.simulate.generate import LENGTHS, PATTERNS, Recipe
from llmasos_edge.simulate.picture import picture
from llmasos_edge.simulate.replay import Replay, Replayed
from llmasos_edge.simulate.statistics import figures

USAGE: Final = 2
PROGRESS_S: Final = 0.5
EXAMPLES: Final = """\
examples:
  llmasos-simulate                                          1,000 tasks, Poisson arrivals, under every policy
  llmasos-simulate --pattern bursts --load 1.2 --policy priority --policy fcfs
  llmasos-simulate node.workload --picture node.svg         what a node recorded (scheduler: {record: node.workload})
  llmasos-simulate --machine node.workload --tasks 20000    made-up tasks, on the machine that was recorded
  llmasos-simulate --tasks 200 --save my.workload           writes the tasks down, to be changed or kept
"""


def main() -> None:
    options = _arguments()
    try:
        _run(options)
    except ConfigError as error:
        sys.stderr.write(f"llmasos-simulate: {error.message}\n")
        sys.exit(USAGE)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read has seen enough: `llmasos-simulate | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _arguments() -> argparse.Namespace:
    recipe = Recipe()
    parser = argparse.ArgumentParser(
        prog="llmasos-simulate",
        description="The node's kernel on a manual clock: replays a workload, and tells what each policy makes of it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("workload", nargs="?", type=Path, metavar="FILE", help="a workload file; without one, tasks are made up")
    add(
        "--policy",
        action="append",
        choices=POLICIES,
        metavar="NAME",
        help=f"{', '.join(POLICIES)}; again for more (all)",
    )
    add("--json", action="store_true", help="every figure, as JSON")
    add("--picture", type=Path, metavar="FILE.svg", help="draw who had which sequence when, and how many waited")
    add("--version", action="version", version=f"llmasos-simulate {__version__}")
    made = parser.add_argument_group("tasks that are made up")
    add = made.add_argument
    add("--pattern", choices=PATTERNS, default=recipe.pattern, help=f"how they arrive ({recipe.pattern})")
    add("--lengths", choices=LENGTHS, default=recipe.lengths, help=f"of each kind of task ({recipe.lengths})")
    add("--tasks", type=_at_least(1, int), default=recipe.tasks, metavar="N", help=f"how many ({recipe.tasks})")
    add(
        "--load",
        type=_at_least(0.001, float),
        default=recipe.load,
        metavar="X",
        help=f"1: all it can do ({recipe.load})",
    )
    add(
        "--clients",
        type=_at_least(1, int),
        default=recipe.clients,
        metavar="N",
        help=f"whose they are ({recipe.clients})",
    )
    add("--sessions", type=_at_least(0, float), default=0.0, metavar="SHARE", help="turns of conversations, 0 to 1 (0)")
    add("--seed", type=int, default=recipe.seed, metavar="N", help=f"the same one makes the same tasks ({recipe.seed})")
    add("--machine", type=Path, metavar="FILE", help="the machine and the rates of this workload file")
    add("--save", type=Path, metavar="FILE", help="write the workload down, and replay nothing")
    return parser.parse_args()


def _at_least(least: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    def take(text: str) -> float:
        number = kind(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{text}: {least} at least")
        return number

    return take


def _run(options: argparse.Namespace) -> None:
    given = _workload(options)
    if options.save is not None:
        workload.write(options.save, given)
        sys.stdout.write(f"{options.save}: {len(given.arrivals)} tasks\n")
        return
    policies = options.policy or list(POLICIES)
    replayed, took = [], {}
    for policy in dict.fromkeys(policies):
        began = time.perf_counter()
        replayed.append(Replay(given, policy, _Progress(policy, len(given.arrivals))).run())
        took[policy] = round(time.perf_counter() - began, 2)
    results = [figures(each) for each in replayed]
    if options.json:
        rows = [asdict(each) | {"replayed_in_s": took[each.policy]} for each in results]
        sys.stdout.write(json.dumps({"workload": given.header.made_by, "tasks": len(given.arrivals), "policies": rows}))
        sys.stdout.write("\n")
    else:
        tables.show(given, results, took)
    if options.picture is not None:
        _draw(options.picture, given, replayed)


def _workload(options: argparse.Namespace) -> Workload:
    if options.workload is not None:
        return workload.read(options.workload)
    recipe = Recipe(**{name: getattr(options, name) for name in Recipe.__dataclass_fields__})
    if options.machine is None:
        return generate.generate(recipe)
    header = workload.read(options.machine).header
    return generate.generate(recipe, header.machine, header.settings)


def _draw(path: Path, given: Workload, replayed: list[Replayed]) -> None:
    try:
        path.write_text(picture(given, replayed), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


class _Progress:
    """On a terminal, how far a replay is."""

    def __init__(self, policy: str, tasks: int) -> None:
        self._policy, self._tasks = policy, tasks
        self._shown = time.monotonic()
        self._visible = sys.stderr.isatty()

    def __call__(self, ended: int) -> None:
        if self._visible and (time.monotonic() - self._shown > PROGRESS_S or ended == self._tasks):
            self._shown = time.monotonic()
            end = "\r\033[K" if ended == self._tasks else ""
            sys.stderr.write(f"\r{self._policy}: {ended} of {self._tasks} tasks{end}")
            sys.stderr.flush()
