"""The commands about apps: apps, app show, app check."""

from pathlib import Path

import click

from llmasos_edge.cli import render
from llmasos_edge.cli.node import call, examples, json_option, put
from llmasos_edge.errors import UnknownApp
from llmasos_edge.resources import resource

USER_APPS = Path("/etc/llmasos/apps")


@click.command(epilog=examples("llmasos apps"))
@json_option
def apps(as_json: bool) -> None:
    """List the node's apps."""
    put(call("apps"), as_json, render.apps)


@click.group()
def app() -> None:
    """Look at one app."""


@app.command(epilog=examples("llmasos app show summarize"))
@click.argument("name", metavar="APP")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show an app's file as the node understands it, and how often it ran."""
    put(call("app.show", app=name), as_json, render.fields)


@app.command(epilog=examples("llmasos app check my-apps/doorbell.yaml", "llmasos app check summarize"))
@click.argument("name", metavar="APP")
@json_option
def check(name: str, as_json: bool) -> None:
    """Check the file of an APP; needs no node.

    APP is a file, or the name of an app in /etc/llmasos/apps or among those that ship.
    """
    from llmasos_edge.apps.spec import check_app  # noqa: PLC0415 - Jinja2 and YAML: only this command needs them

    path = _file(name)
    check_app(path)
    put({"file": str(path), "ok": True}, as_json, lambda _: render.line(f"{path}: ok"))


def _file(name: str) -> Path:
    candidates = [Path(name), *(folder / f"{name}.yaml" for folder in (USER_APPS, resource("configs") / "apps"))]
    for path in candidates:
        if path.is_file():
            return path
    raise UnknownApp(f"no app file at {', '.join(map(str, candidates))}")
