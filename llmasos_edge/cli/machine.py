"""The commands about the node as a whole: status, mem, dmesg, reload."""

from typing import Any

import click

from llmasos_edge.cli import render
from llmasos_edge.cli.memory import compacted, memory
from llmasos_edge.cli.node import call, connect, examples, json_option, put, put_json


@click.command(epilog=examples("llmasos status"))
@json_option
def status(as_json: bool) -> None:
    """Show the node's state.

    Ready or not, the broker, the models, the apps, the tasks. Exits 0 as soon as the node answers.
    """
    put(call("status"), as_json, _say_status)


@click.group(invoke_without_command=True, epilog=examples("llmasos mem", "llmasos mem compact"))
@json_option
@click.pass_context
def mem(context: click.Context, as_json: bool) -> None:
    """Show the memory budget.

    What is charged to it, by whom, and what the system measures.
    """
    if context.invoked_subcommand is None:
        put(call("mem"), as_json, memory)


@mem.command(epilog=examples("llmasos mem compact"))
@json_option
def compact(as_json: bool) -> None:
    """Move saved sessions together in the arena, so that its holes become one.

    The node does so by itself when it is idle.
    """
    put(call("mem.compact"), as_json, compacted)


@click.command(epilog=examples("llmasos dmesg", "llmasos dmesg -f"))
@click.option("-f", "--follow", is_flag=True, help="Go on with new events as they happen.")
@json_option
def dmesg(follow: bool, as_json: bool) -> None:
    """Show the kernel's trace: the latest events, the oldest first. With --json, one object a line."""
    with connect() as client:
        for event in client.stream("dmesg", follow=follow):
            trace = event["trace"]
            put_json(trace, indent=None) if as_json else _say_trace(trace)


@click.command(epilog=examples("llmasos reload"))
@json_option
def reload(as_json: bool) -> None:
    """Have the node read its configuration and apps again.

    Tasks go on. A model that is busy takes its new settings when it is idle; what takes a restart is told.
    """
    put(call("reload"), as_json, _say_reload)


def _say_status(shape: dict[str, Any]) -> None:
    ready = "ready" if shape["ready"] else "not ready"
    render.line(f"{shape['site']}/{shape['node']}: {shape['state']}, {ready} (LLMasOS Edge {shape['version']})")
    render.line(f"since   {shape['since']}, boot {shape['boot_id']}")
    render.line(f"board   {shape['board']}")
    broker = shape["broker"]
    facts = ["connected" if broker["connected"] else "NOT CONNECTED", "managed" if broker["managed"] else "foreign"]
    render.line(f"broker  {broker['url']} ({', '.join(facts)}, trust {broker['trust']})")
    if shape["http"] is not None:
        keys = shape["http"]["keys"]
        render.line(f"http    {shape['http']['url']} ({'this machine alone' if keys is None else f'keys: {keys}'})")
    models = ", ".join(f"{model['id']} {render.model_state(model)}" for model in shape["models"])
    render.line(f"models  {models or 'none'}")
    render.line(f"apps    {', '.join(shape['apps']) or 'none'}")
    if shape["pressure"]["level"] != "none":
        render.line(f"memory  short ({shape['pressure']['level']}): {shape['pressure']['why']}")
    _say_pending(shape["pending"])
    tasks = ", ".join(f"{count} {state}" for state, count in shape["tasks"].items() if count)
    render.line(f"tasks   {tasks or 'none'}")


def _say_reload(shape: dict[str, Any]) -> None:
    render.line(f"reloaded: {', '.join(shape['applied']) or 'nothing but the apps has changed'}")
    _say_pending(shape)


def _say_pending(shape: dict[str, Any]) -> None:
    if shape["waiting"]:
        render.line(f"waits   {', '.join(shape['waiting'])}: new settings as soon as it is idle")
    if shape["restart"]:
        render.line(f"restart {', '.join(shape['restart'])}: changed in the node file, applied at the next start")


def _say_trace(trace: dict[str, Any]) -> None:
    at, kind = trace["at"], trace["kind"]
    moment = f"[{at / 1000:12.3f}]" if isinstance(at, int | float) else f"[{at}]"
    facts = " ".join(f"{name}={value}" for name, value in trace.items() if name not in ("at", "kind"))
    render.line(f"{moment} {kind:20} {facts}".rstrip())
