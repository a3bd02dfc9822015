"""How `mem` shows the budget: what is charged beside what is measured, as bars that share one scale."""

import shutil
import sys
from typing import Any

import click

from llmasos_edge.cli.render import Column, Row, size, table
from llmasos_edge.cli.terminal import harmless

BAR_CELLS = 28


def bar(charged: float, measured: float | None, whole: float) -> str:
    """A bar of the whole: used, charged but unused, and used beyond the charge.

    Without a measurement the charge counts as used. What is more than nothing is at least one cell.
    """
    used_mark, spare_mark, beyond_mark = "█░▓" if sys.stdout.isatty() else "#-!"
    used = charged if measured is None else measured
    inside, outer = _cells(min(used, charged), whole), _cells(max(used, charged), whole)
    rest_mark = beyond_mark if used > charged else spare_mark
    return used_mark * inside + rest_mark * (outer - inside)


def _cells(count: float, whole: float) -> int:
    return min(BAR_CELLS, max(round(count / whole * BAR_CELLS), 1 if count else 0)) if whole else 0


def memory(shape: dict[str, Any]) -> None:
    """What `mem` shows."""
    budget, charged, measured = shape["budget"], shape["charged"], shape.get("measured")
    click.echo(f"budget {size(budget)} · charged {size(charged)} · measured {size(measured)}")
    if shape["pressure"]["level"] != "none":
        click.echo(f"memory is short ({shape['pressure']['level']}): {harmless(shape['pressure']['why'])}")
    filled = bar(charged, measured, budget).ljust(BAR_CELLS, "·" if sys.stdout.isatty() else ".")
    share = round(100 * charged / budget) if budget else 0
    click.echo(f"[{filled}] {share} % charged, {size(budget - charged)} free\n")
    regions = [region | {"charged": region["bytes"]} for region in shape["regions"]]
    _charges("REGION", "name", "kind", regions, budget)
    if shape.get("models"):
        click.echo()
        _charges("MODEL", "id", "state", shape["models"], budget)
    click.echo()
    for name in ("arena", "swap", "sessions"):
        if shape.get(name):
            width = shutil.get_terminal_size().columns
            click.echo(click.wrap_text(_facts(shape[name]), width, f"{name:9}", " " * 9))
    used, spare, beyond = "█░▓" if sys.stdout.isatty() else "#-!"
    click.echo(f"\n{used} used   {spare} charged, not used   {beyond} used beyond the charge")


def compacted(shape: dict[str, Any]) -> None:
    """What `mem compact` has done."""
    before, after = shape["before"], shape["after"]
    click.echo(f"moved {size(shape['moved'])}: {before['holes']} holes, the largest {size(before['largest_hole'])}")
    click.echo(f"now {after['holes']}, the largest {size(after['largest_hole'])}")
    if shape["swap_moving"]:
        click.echo(f"the swap file follows: {size(shape['swap_moving'])} are being moved")


def _charges(title: str, name: str, kind: str, rows: list[Row], budget: int) -> None:
    table(
        [
            Column(title, lambda row: row[name]),
            Column(kind.upper(), lambda row: row.get(kind)),
            Column("CHARGED", lambda row: size(row["charged"]), right=True),
            Column("MEASURED", lambda row: size(row.get("measured")), right=True, optional=True),
            Column("SHARE OF BUDGET", lambda row: bar(row["charged"], row.get("measured"), budget)),
        ],
        rows,
        "nothing is charged",
    )


def _facts(shape: dict[str, Any]) -> str:
    sizes = {"size", "used", "free", "largest_hole"}
    shown = {name: size(value) if name in sizes else str(value) for name, value in shape.items()}
    facts = [f"{name.replace('_', ' ')} {value}" for name, value in shown.items()]
    return harmless(", ".join(facts))
