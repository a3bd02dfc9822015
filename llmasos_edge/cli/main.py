"""The command `llmasos`: finds the command, loads its module alone, and turns every end into an exit code."""

import importlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import click

from llmasos_edge import __version__
from llmasos_edge.cli.node import JSON_KEY, examples
from llmasos_edge.cli.terminal import note, report
from llmasos_edge.errors import LLMasOSError

DEFAULT_SOCKET = "/run/llmasos/control.sock"
EXIT_INTERRUPTED = 130

COMMANDS = {
    "run": "run:run",
    "ps": "tasks:ps",
    "show": "tasks:show",
    "wait": "tasks:wait",
    "kill": "tasks:kill",
    "renice": "tasks:renice",
    "suspend": "tasks:suspend",
    "resume": "tasks:resume",
    "models": "models:models",
    "model": "models:model",
    "mem": "machine:mem",
    "sessions": "sessions:sessions",
    "session": "sessions:session",
    "apps": "apps:apps",
    "app": "apps:app",
    "status": "machine:status",
    "doctor": "doctor:doctor",
    "dmesg": "machine:dmesg",
    "config": "config:config",
    "reload": "machine:reload",
}


class Shell(click.Group):
    """Commands that are imported when they are used, so that each starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(f"llmasos_edge.cli.{module}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LLMasOSError as error:
            ctx.exit(report(error, as_json=bool(ctx.meta.get(JSON_KEY))))
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                click.echo(err=True)  # below what stands on the line with ^C
            note("interrupted")
            ctx.exit(EXIT_INTERRUPTED)


@click.command(
    cls=Shell,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples('llmasos run "What is a mutex?"', "cat notes.txt | llmasos run --app summarize", "llmasos ps -a"),
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    help=f"The node's control socket; else $LLMASOS_SOCKET, else {DEFAULT_SOCKET}.",
)
@click.version_option(__version__, prog_name="llmasos", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, socket: Path | None) -> None:
    """Talk to a node of LLMasOS Edge.

    Every command takes --json, and --help with examples.
    Exit codes: 0 done, 1 failed, 2 bad usage, 3 no node, 4 refused, 130 interrupted.
    """
    ctx.obj = socket or Path(os.environ.get("LLMASOS_SOCKET") or DEFAULT_SOCKET)


def main() -> None:
    """The entry point. Characters that the terminal's encoding lacks are shown as `?`, not as a crash."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    cli(prog_name="llmasos")
