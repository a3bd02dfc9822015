"""Results as a person reads them: tables and fields, in colour on a terminal, plain and aligned in a pipe."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click

from llmasos_edge.cli.terminal import harmless

Row = dict[str, Any]

STATE_STYLES = {
    "RUNNING": "green",
    "READY": "cyan",
    "SUSPENDED": "yellow",
    "BLOCKED": "yellow",
    "loaded": "green",
    "failed": "red",
    "ok": "green",
    "FAIL": "bold red",
}


class Column(NamedTuple):
    """A table's column; numbers are aligned to the right.

    On a terminal an optional one is left out where it is empty, and a flexible one gives way where room is short.
    """

    title: str
    value: Callable[[Row], object]
    right: bool = False
    optional: bool = False
    flexible: bool = False


def size(count: float | None) -> str:
    """Bytes with a binary unit; a dash for None."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(ms: float | None) -> str:
    """Milliseconds with the unit that suits them; a dash for None."""
    if ms is None:
        return "-"
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(round(ms / 1000), 60)
    return f"{minutes} min {seconds:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def line(text: str) -> None:
    click.echo(harmless(text))


def table(columns: Sequence[Column], rows: Sequence[Row], empty: str) -> None:
    """Rows under titles; for none at all, a sentence (on stderr in a pipe, where a program counts lines)."""
    if not rows:
        click.echo(empty, err=not sys.stdout.isatty())
        return
    cells = [[_cell(column.value(row)) for column in columns] for row in rows]
    if sys.stdout.isatty():
        shown = [n for n, column in enumerate(columns) if not column.optional or any(row[n] != "-" for row in cells)]
        _rich_table([columns[n] for n in shown], [[row[n] for n in shown] for row in cells])
    else:
        _plain_table(columns, cells)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return harmless(str(value)).replace("\n", " ").replace("\t", " ")


def _rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - 50 ms that only a terminal's tables are worth
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    grid = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        grid.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="ellipsis",
            no_wrap=not column.flexible,
        )
    for row in rows:
        grid.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row))
    Console(highlight=False).print(grid)


def _plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    lines = [[column.title for column in columns], *rows]
    widths = [max(len(cells[n]) for cells in lines) for n in range(len(columns))]
    for cells in lines:
        padded = zip(cells, widths, columns, strict=True)
        click.echo("  ".join(c.rjust(w) if column.right else c.ljust(w) for c, w, column in padded).rstrip())


def fields(shape: Row, depth: int = 0) -> None:
    """A mapping as `key: value` lines, nested ones indented, in the way of YAML."""
    indent = "  " * depth
    for key, value in shape.items():
        if isinstance(value, dict) and value:
            line(f"{indent}{key}:")
            fields(value, depth + 1)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            line(f"{indent}{key}:")
            for item in value:
                line(f"{indent}  - {json.dumps(item, ensure_ascii=False)}")
        elif isinstance(value, str) and "\n" in value.strip():
            line(f"{indent}{key}: |")
            for part in value.strip().splitlines():
                line(f"{indent}  {part}")
        else:
            line(f"{indent}{key}: {_scalar(value)}")


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return value.strip()
    return "-" if value is None else json.dumps(value, ensure_ascii=False)


def tasks(rows: Sequence[Row]) -> None:
    """What `ps` shows."""
    table(
        [
            Column("TASK", lambda row: row["id"]),
            Column("STATE", lambda row: row["state"]),
            Column("CLASS", lambda row: row["class"]),
            Column("CLIENT", lambda row: row.get("client"), flexible=True),
            Column("MODEL", lambda row: row.get("model"), flexible=True),
            Column("APP", lambda row: row.get("app"), optional=True, flexible=True),
            Column("SESSION", lambda row: row.get("session"), optional=True, flexible=True),
            Column("PROMPT", lambda row: row.get("prompt_tokens"), right=True),
            Column("CACHED", lambda row: row.get("cached_tokens"), right=True),
            Column("OUT", lambda row: row.get("generated_tokens"), right=True),
            Column("WAITED", lambda row: duration(row.get("waiting_ms")), right=True),
            Column("RAN", lambda row: duration(row.get("running_ms")), right=True),
            Column("DEADLINE", lambda row: duration(row.get("deadline_ms")), right=True, optional=True),
        ],
        rows,
        "no tasks",
    )


def models(rows: Sequence[Row]) -> None:
    """What `models` shows."""
    table(
        [
            Column("MODEL", lambda row: row["id"]),
            Column("STATE", model_state),
            Column("SIZE", lambda row: size(row.get("size")), right=True),
            Column("CHARGED", lambda row: size(row.get("charged") or None), right=True, optional=True),
            Column("LAST USED", lambda row: _ago(row.get("idle_ms")), right=True, optional=True),
            Column("WAITING", lambda row: row.get("waiting"), right=True),
            Column("CONTEXT", lambda row: row.get("context"), right=True),
            Column("SEQUENCES", lambda row: row.get("sequences"), right=True),
            Column("KV", lambda row: row.get("kv"), optional=True),
            Column("PINNED", lambda row: row.get("pinned")),
            Column("DETERMINISTIC", lambda row: (row.get("selftest") or {}).get("deterministic"), optional=True),
            Column("WEIGHTS", lambda row: row.get("weights"), optional=True),
            Column("ESTIMATE", _estimate, right=True, optional=True),
            Column("LICENCE", lambda row: row.get("licence")),
        ],
        rows,
        "no models: `llmasos model pull smollm2-135m` gets one",
    )


def model_state(row: Row) -> str:
    """`loading 43 %`, or the bare state."""
    progress = row.get("progress")
    return str(row["state"]) if progress is None else f"{row['state']} {int(100 * progress)} %"


def _ago(ms: float | None) -> str | None:
    return None if ms is None else f"{duration(ms)} ago"


def _estimate(row: Row) -> str | None:
    """By how much the charge of the model's first load, before anything was learnt of it, was off what it then took."""
    first = (row.get("memory") or {}).get("first") or {}
    if not first.get("measured"):
        return None
    return f"{100 * (first['charged'] / first['measured'] - 1):+.1f} %"


def apps(rows: Sequence[Row]) -> None:
    """What `apps` shows."""
    table(
        [
            Column("APP", lambda row: row["name"]),
            Column("CLASS", lambda row: row.get("class")),
            Column("MODEL", lambda row: row.get("model"), optional=True),
            Column("TRIGGER", _trigger, optional=True),
            Column("DESCRIPTION", lambda row: row.get("description"), flexible=True),
        ],
        rows,
        "no apps: the node file names them under `apps`",
    )


def _trigger(row: Row) -> object:
    trigger = row.get("trigger")
    return trigger.get("mqtt") if isinstance(trigger, dict) else trigger
