"""What commands share: the --json option, the connection to the node, and how a result is put out."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from llmasos_edge.api.client import Client
from llmasos_edge.cli.terminal import HIDDEN
from llmasos_edge.kernel.units import Priority

JSON_KEY = "llmasos.json"
CLASSES = click.Choice([priority.name.lower() for priority in reversed(Priority)])

Command = TypeVar("Command", bound=Callable[..., Any])

_ESCAPES = {code: f"\\u{code:04x}" for code in HIDDEN if code >= 0x7F}  # what JSON itself does not escape


def _remember(ctx: click.Context, _: click.Parameter, as_json: bool) -> bool:
    ctx.meta[JSON_KEY] = as_json  # errors are printed at the root, which has no --json of its own
    return as_json


def json_option(command: Command) -> Command:
    """The --json of every command."""
    flag = click.option("--json", "as_json", is_flag=True, callback=_remember, help="Print JSON, for programs.")
    return flag(command)


def examples(*lines: str) -> str:
    """An epilog that shows these command lines as they are."""
    return "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)])


def connect(timeout_s: float | None = None) -> Client:
    """A connection to the node that this command line means."""
    return Client(click.get_current_context().find_root().obj, timeout_s)


def call(name: str, /, **args: object) -> Any:
    """One call on a connection of its own."""
    with connect() as client:
        return client.call(name, **args)


def put_json(shape: object, *, indent: int | None = 2) -> None:
    """Print a value unchanged; characters that a terminal would obey are escaped, which JSON reads back the same."""
    click.echo(json.dumps(shape, ensure_ascii=False, indent=indent).translate(_ESCAPES))


def put(shape: Any, as_json: bool, render: Callable[[Any], None]) -> None:
    """Print a result for a program or for a person."""
    if as_json:
        put_json(shape)
    else:
        render(shape)
