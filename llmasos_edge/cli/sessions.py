"""The commands about sessions: sessions, and session show, park, rm."""

from typing import Any

import click

from llmasos_edge.cli import render
from llmasos_edge.cli.node import call, examples, json_option, put
from llmasos_edge.cli.render import Column, size, table

client_option = click.option("--client", help="Whose session, where several clients have one of that name.")


@click.command(epilog=examples("llmasos sessions"))
@json_option
def sessions(as_json: bool) -> None:
    """List the conversations that the node keeps, and where what is computed of them lies.

    resident: in a model, since a task runs. parked: in the arena. swapped: in the swap file. dropped: it is computed
    again when the conversation goes on.
    """
    put(call("sessions"), as_json, _say_sessions)


@click.group()
def session() -> None:
    """Look at a conversation, move it out of RAM, or remove it."""


@session.command(epilog=examples("llmasos session show holiday", "llmasos session show holiday --client phone"))
@click.argument("name", metavar="SESSION")
@client_option
@json_option
def show(name: str, client: str | None, as_json: bool) -> None:
    """Show what was said in a session, and where what is computed of it lies."""
    put(call("session.show", session=name, client=client), as_json, render.fields)


@session.command(epilog=examples("llmasos session park holiday"))
@click.argument("name", metavar="SESSION")
@client_option
@json_option
def park(name: str, client: str | None, as_json: bool) -> None:
    """Free the RAM that an idle session holds: what is computed of it stays in the swap file."""
    put(call("session.park", session=name, client=client), as_json, _say_states)


@session.command(epilog=examples("llmasos session rm holiday"))
@click.argument("name", metavar="SESSION")
@client_option
@json_option
def rm(name: str, client: str | None, as_json: bool) -> None:
    """Remove a session: what was said in it, and what is computed of it."""
    put(call("session.rm", session=name, client=client), as_json, _say_removed)


def _say_sessions(rows: list[dict[str, Any]]) -> None:
    table(
        [
            Column("SESSION", lambda row: row["session"], flexible=True),
            Column("CLIENT", lambda row: row["client"], flexible=True),
            Column("STATE", lambda row: row["state"]),
            Column("MODEL", lambda row: row["model"], flexible=True),
            Column("MESSAGES", lambda row: row["messages"], right=True),
            Column("TOKENS", lambda row: row["tokens"], right=True),
            Column("SAVED", lambda row: size(row["bytes"]), right=True),
            Column("IDLE", lambda row: render.duration(row["idle_ms"]), right=True),
        ],
        rows,
        "no sessions: `llmasos run --session NAME TEXT` begins one",
    )


def _say_states(shape: dict[str, Any]) -> None:
    states = ", ".join(f"{each['model']} {each['state']}" for each in shape["states"])
    render.line(f"{shape['session']}: {states or 'nothing of it is saved'}")


def _say_removed(shape: dict[str, Any]) -> None:
    render.line(f"{shape['session']} removed")
