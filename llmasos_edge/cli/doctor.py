"""The command `doctor`: looks at a node and its machine from outside, and says how to mend what is wrong."""

import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from llmasos_edge.cli import storage
from llmasos_edge.cli.host import Finding, Host, mosquitto, synchronised
from llmasos_edge.cli.models import DEFAULT_STATE
from llmasos_edge.cli.node import connect, examples, json_option, put_json
from llmasos_edge.cli.render import STATE_STYLES, line
from llmasos_edge.config.board import detect_board, load_board
from llmasos_edge.errors import ConfigError, LLMasOSError, Unreachable
from llmasos_edge.resources import resource
from llmasos_edge.services.store import ModelStore

PATIENCE_S = 5.0


@click.command(epilog=examples("llmasos doctor", "llmasos doctor --state .state/demo"))
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Where the node keeps its models and journal.  [default: where the node says, or /var/lib/llmasos]",
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, state: Path | None, as_json: bool) -> None:
    """Check the node, its machine, and whether that is as its board should be.

    Each line that is not ok says how to mend it. It reads the models anew and measures the disk, which takes seconds.
    Exits 1 when a check failed.
    """
    findings = []
    for finding in _findings(state):
        findings.append(finding)
        if not as_json:
            _say(finding)
    if as_json:
        put_json([asdict(finding) for finding in findings])
    ctx.exit(1 if any(finding.state == "FAIL" for finding in findings) else 0)


def _findings(state: Path | None) -> Iterator[Finding]:
    host, status = Host(), None
    try:
        with connect(PATIENCE_S) as client:
            status, mem, models = client.call("status"), client.call("mem"), client.call("models")
            yield Finding("daemon", "ok", f"version {status['version']}, pid {client.node_pid}")
            yield from _node(status)
            yield mosquitto(needed=status["broker"]["managed"])
            yield host.memory(max(0, mem["budget"] - (mem.get("measured") or 0)))
            yield _pressure(status["pressure"])
            yield _books(client.call("check"))
            yield host.memlock(client.node_pid, sum(model.get("size") or 0 for model in models if model.get("pinned")))
        yield from _models(status)
    except LLMasOSError as error:
        yield Finding("daemon", "FAIL", error.message, _daemon_mend(error))
        yield mosquitto(needed=False)
    folder = state or Path(status["state_dir"] if status else os.environ.get("STATE_DIRECTORY") or DEFAULT_STATE)
    if status is None:
        yield from _stored_models(folder)
    yield host.disk(folder)
    yield host.clock(time.time(), synchronised())
    yield host.controllers()
    try:
        yield from _board(host, folder, status["board"] if status else None)
    except ConfigError as error:
        yield Finding("board", "FAIL", error.message, "name a board of the list in the node file, `spec.board`")


def _board(host: Host, state: Path, named: str | None) -> Iterator[Finding]:
    """The machine against its board: the one that the node runs with, or, without a node, the one that is detected."""
    boards = resource("board")
    board = load_board(named, boards) if named else None
    found = detect_board(boards, host.proc / "device-tree/compatible")
    if board is None or board == found:
        board = found
        yield Finding("board", "ok", f"{board.name}: {board.description}")
    else:
        what = f"the node is told to be a {board.name}, and the machine is a {found.name}"
        yield Finding("board", "warn", what, "take `board` out of the node file, or write `board: auto`")
    yield host.kernel(board)
    yield host.ram(board)
    yield host.cores(board)
    if state.is_dir():
        yield storage.judge(storage.kind_of(state, host.proc, host.sys), storage.measure(state), board)
    yield host.temperature(board)
    if (power := host.power()) is not None:
        yield power


def _daemon_mend(error: LLMasOSError) -> str:
    log = "`journalctl -u llmasosd` has the daemon's log"
    return log if isinstance(error, Unreachable) else f"restart it: `systemctl restart llmasosd`; {log}"


def _node(status: dict[str, Any]) -> Iterator[Finding]:
    if status["ready"]:
        yield Finding("ready", "ok", status["state"])
    else:
        yield Finding("ready", "FAIL", f"{status['state']}, not ready", "`llmasos status` says what it waits for")
    broker = status["broker"]
    if broker["connected"]:
        yield Finding("broker", "ok", broker["url"])
    else:
        what = f"not connected to {broker['url']}"
        yield Finding(
            "broker", "FAIL", what, "check that it runs, and `mqtt` in the node file; `llmasos dmesg` says why"
        )


def _books(found: dict[str, Any]) -> Finding:
    if found["sound"]:
        return Finding("books", "ok", "every task is in its place, every byte is charged once")
    mend = "restart the node, which keeps what it has accepted, and report this with the output of `llmasos dmesg`"
    return Finding("books", "FAIL", found["why"], mend)


def _pressure(pressure: dict[str, Any]) -> Finding:
    """What the node gives back because others are short of memory."""
    what = {"park": "idle sessions are swapped out", "drop": "idle models are dropped", "refuse": "tasks are refused"}
    if pressure["level"] not in what:
        return Finding("pressure", "ok", "nobody is short of memory")
    mend = "stop other programs, or lower `memory.budget`; `llmasos dmesg` tells what was given back"
    return Finding("pressure", "warn", f"{what[pressure['level']]}: {pressure['why']}", mend)


def _models(status: dict[str, Any]) -> Iterator[Finding]:
    """Each model of the node, its file read and hashed anew: seconds for a large one."""
    for model in status["models"]:
        name = model["id"]
        try:
            with connect() as client:
                client.call("model.verify", model=name)
        except LLMasOSError as error:
            yield Finding("model", "FAIL", error.message, _model_mend(name))
        else:
            yield Finding("model", "ok", f"{name} is {model['state']}, its file is whole")


def _stored_models(state: Path) -> Iterator[Finding]:
    """Without a node: each model of the state folder."""
    folder = state / "models"
    if not os.access(folder, os.R_OK | os.X_OK):
        return
    store = ModelStore(folder, None)
    for name in store.names():
        try:
            store.verify(name)
        except LLMasOSError as error:
            yield Finding("model", "FAIL", error.message, _model_mend(name))
        else:
            yield Finding("model", "ok", f"{name}: its file is whole")


def _model_mend(name: str) -> str:
    return f"`llmasos model rm {name}`, then `llmasos model pull {name}`"


def _say(finding: Finding) -> None:
    """A finding as a line, and a second one with its mend."""
    style = STATE_STYLES.get(finding.state, "yellow").split()
    line_start = click.style(f"{finding.state:4}", fg=style[-1], bold="bold" in style)
    click.echo(f"{line_start}  ", nl=False)
    line(f"{finding.check:10} {finding.what}")
    if finding.state != "ok":
        line(f"{'':18}mend: {finding.mend}")
