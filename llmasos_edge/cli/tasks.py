"""The commands about tasks: ps, show, wait, kill, renice, suspend, resume."""

from typing import Any

import click

from llmasos_edge.cli import render
from llmasos_edge.cli.answer import Answer
from llmasos_edge.cli.node import CLASSES, call, connect, examples, json_option, put, put_json


@click.command(epilog=examples("llmasos ps -a"))
@click.option("-a", "--all", "everything", is_flag=True, help="Show tasks that have ended, too.")
@json_option
def ps(everything: bool, as_json: bool) -> None:
    """List the tasks, with their states, tokens and times."""
    put(call("ps", all=everything), as_json, render.tasks)


@click.command(epilog=examples("llmasos show 3-17"))
@click.argument("task")
@json_option
def show(task: str, as_json: bool) -> None:
    """Show everything about one task, its text so far included."""
    put(call("show", task=task), as_json, render.fields)


@click.command(epilog=examples("llmasos wait 3-17", "llmasos wait $(llmasos run --detach hello)"))
@click.argument("task")
@json_option
def wait(task: str, as_json: bool) -> None:
    """Wait for a task to end, and print its answer. Ctrl-C ends the wait, not the task."""
    with connect() as client:
        if as_json:
            put_json(client.call("wait", task=task))
        else:
            Answer().follow(client.stream("wait", task=task))


@click.command(epilog=examples("llmasos kill 3-17"))
@click.argument("task")
@json_option
def kill(task: str, as_json: bool) -> None:
    """End a task; its caller is answered `cancelled`."""
    put(call("kill", task=task), as_json, _say_state)


@click.command(epilog=examples("llmasos renice 3-17 batch"))
@click.argument("task")
@click.argument("klass", metavar="CLASS", type=CLASSES)
@json_option
def renice(task: str, klass: str, as_json: bool) -> None:
    """Give a task another priority class."""
    put(call("renice", task=task, **{"class": klass}), as_json, _say_state)


@click.command(epilog=examples("llmasos suspend 3-17"))
@click.argument("task")
@json_option
def suspend(task: str, as_json: bool) -> None:
    """Stop a task until it is resumed."""
    put(call("suspend", task=task), as_json, _say_state)


@click.command(epilog=examples("llmasos resume 3-17"))
@click.argument("task")
@json_option
def resume(task: str, as_json: bool) -> None:
    """Let a suspended task go on."""
    put(call("resume", task=task), as_json, _say_state)


def _say_state(result: dict[str, Any]) -> None:
    render.line(f"{result['task']} {result['state']}")
