"""The command `run`: a text in, an answer out, as it is made."""

import json
import os
import re
import select
import stat
import sys
from pathlib import Path
from typing import IO, Any

import click

from llmasos_edge.cli.answer import Answer
from llmasos_edge.cli.node import CLASSES, connect, examples, json_option, put_json
from llmasos_edge.cli.terminal import note

_UNITS_MS = {"ms": 1, "s": 1000, "min": 60_000}
_STDIN_PATIENCE_S = 1.0


class Duration(click.ParamType[int]):
    """A time with its unit, as milliseconds."""

    name = "time"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|min)", str(value))
        if match is None or not float(match[1]):
            self.fail(f"{value!r} is not a time with its unit, like 500ms, 5s or 2min", param, ctx)
        return round(float(match[1]) * _UNITS_MS[match[2]])


class Format(click.ParamType[object]):
    """The word `json`, or a file with a JSON schema."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> object:
        if value == "json":
            return value
        try:
            schema = json.loads(Path(value).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.fail(f"{value}: {error}", param, ctx)
        if not isinstance(schema, dict):
            self.fail(f"{value}: a JSON schema is an object", param, ctx)
        return schema


@click.command(
    epilog=examples(
        'llmasos run "What is a mutex?"',
        "cat notes.txt | llmasos run --app summarize",
        'llmasos run --class batch --deadline 2min --detach "Write a poem about rain"',
    )
)
@click.argument("text", nargs=-1)
@click.option("--app", help="Run this app on the text.")
@click.option("--model", help="Ask this model; without --app and --model, the node's first.")
@click.option("--class", "klass", type=CLASSES, help="Priority class.  [default: normal, or the app's]")
@click.option("--deadline", "deadline_ms", type=Duration(), metavar="TIME", help="Latest end, like 500ms, 5s, 2min.")
@click.option("--session", help="Go on with (or start) the conversation of this name.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Length of the answer at most.")
@click.option("--temperature", type=click.FloatRange(min=0), metavar="X", help="0 takes the likeliest word each time.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="The same seed gives the same answer.")
@click.option("--format", type=Format(), metavar="FILE", help="Answer in JSON: a file with a JSON schema, or `json`.")
@click.option("--detach", is_flag=True, help="Print the task's id and leave; `llmasos wait` gets the answer.")
@json_option
def run(text: tuple[str, ...], app: str | None, model: str | None, detach: bool, as_json: bool, **options: Any) -> None:
    """Have TEXT answered, and print the answer as it is made.

    Without TEXT, or with -, the text is read from standard input. When both are given, the text stands first.
    Ctrl-C cancels the task.
    """
    if app and model:
        raise click.UsageError("--app and --model exclude each other: an app has its model")
    op, body = _request(_text(" ".join(text)), app, model)
    options["class"] = options.pop("klass")
    body |= {name: value for name, value in options.items() if value is not None}
    with connect() as client:
        if detach:
            accepted = client.call("submit", op=op, body=body, detach=True)
            put_json(accepted) if as_json else click.echo(accepted["task"])
        elif as_json:
            put_json(client.call("submit", op=op, body=body, detach=False))
        else:
            Answer().follow(client.stream("submit", op=op, body=body | {"stream": True}, detach=False))


def _request(text: str, app: str | None, model: str | None) -> tuple[str, dict[str, Any]]:
    if app:
        return "run", {"app": app, "input": text}
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
    return "chat", chat | ({"model": model} if model else {})


def _text(given: str) -> str:
    """The text of the command line, of standard input, or both."""
    if given in ("", "-"):
        if sys.stdin.isatty():
            note("type the text, then Ctrl-D")
        text = _read(sys.stdin)
    elif _is_piped(sys.stdin):
        text = f"{given}\n\n{_read(sys.stdin)}".rstrip("\n")
    else:
        text = given
    if not text.strip():
        raise click.UsageError("no text: give it as an argument or on standard input")
    return text


def _is_piped(stream: IO[str]) -> bool:
    """Whether somebody feeds this stream: not a terminal, not /dev/null, not a socket of a service."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):
        return False
    if stat.S_ISFIFO(mode) and not select.select([stream], [], [], _STDIN_PATIENCE_S)[0]:
        note("waiting for standard input, which is a pipe (</dev/null says there is none)")
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read(stream: IO[str]) -> str:
    try:
        return stream.read()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"standard input is not UTF-8 text: {error}") from error
