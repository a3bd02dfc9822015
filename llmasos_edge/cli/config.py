"""The commands about a node's configuration: config check, config show."""

from pathlib import Path

import click

from llmasos_edge.cli import render
from llmasos_edge.cli.node import call, examples, json_option, put
from llmasos_edge.resources import resource


@click.group()
def config() -> None:
    """Check or show a node's configuration."""


@config.command(epilog=examples("llmasos config check /etc/llmasos/node.yaml"))
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, exists=True))
@json_option
def check(path: Path, as_json: bool) -> None:
    """Check a node FILE; needs no node."""
    from llmasos_edge.config.load import load_node  # noqa: PLC0415 - YAML: only this command needs it

    load_node(path, boards=resource("board"))
    put({"file": str(path), "ok": True}, as_json, lambda _: render.line(f"{path}: ok"))


@config.command(epilog=examples("llmasos config show"))
@json_option
def show(as_json: bool) -> None:
    """Show the configuration that the node runs with, defaults included."""
    put(call("config.show"), as_json, render.fields)
