"""The command `doctor`: looks at a node and its machine from outside, and says how to mend what is wrong."""

import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from llmasos_edge.cli.host import Finding, Host, mosquitto
from llmasos_edge.cli.node import connect, examples, json_option, put_json
from llmasos_edge.cli.render import STATE_STYLES, line
from llmasos_edge.errors import LLMasOSError, Unreachable

PATIENCE_S = 5.0


@click.command(epilog=examples("llmasos doctor"))
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=lambda: os.environ.get("STATE_DIRECTORY") or "/var/lib/llmasos",
    help="Where the node keeps its models and journal.  [default: /var/lib/llmasos]",
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, state: Path, as_json: bool) -> None:
    """Check the node and its machine.

    Each line that is not ok says how to mend it. Exits 1 when a check failed.
    """
    findings = []
    for finding in _findings(state):
        findings.append(finding)
        if not as_json:
            _say(finding)
    if as_json:
        put_json([asdict(finding) for finding in findings])
    ctx.exit(1 if any(finding.state == "FAIL" for finding in findings) else 0)


def _findings(state: Path) -> Iterator[Finding]:
    host = Host()
    try:
        with connect(PATIENCE_S) as client:
            status, mem, models = client.call("status"), client.call("mem"), client.call("models")
            yield Finding("daemon", "ok", f"version {status['version']}, pid {client.node_pid}")
            yield from _node(status)
            yield mosquitto(needed=status["broker"]["managed"])
            yield host.memory(max(0, mem["budget"] - (mem.get("measured") or 0)))
            yield host.memlock(client.node_pid, sum(model.get("size") or 0 for model in models if model.get("pinned")))
        yield from _stored_models(status)
    except LLMasOSError as error:
        yield Finding("daemon", "FAIL", error.message, _daemon_mend(error))
        yield mosquitto(needed=False)
    yield host.disk(state)
    yield host.clock(time.time())
    yield host.kernel()
    yield host.controllers()


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


def _stored_models(status: dict[str, Any]) -> Iterator[Finding]:
    """Each model of the node, its file read and hashed anew: seconds for a large one."""
    for model in status["models"]:
        name = model["id"]
        try:
            with connect() as client:
                client.call("model.verify", model=name)
        except LLMasOSError as error:
            mend = f"`llmasos model rm {name}`, then `llmasos model pull {name}`"
            yield Finding("model", "FAIL", error.message, mend)
        else:
            yield Finding("model", "ok", f"{name} is {model['state']}, its file is whole")
    if not status["models"]:
        yield Finding("model", "warn", "the node has none", "name one under `models` in the node file")


def _say(finding: Finding) -> None:
    """A finding as a line, and a second one with its mend."""
    style = STATE_STYLES.get(finding.state, "yellow").split()
    line_start = click.style(f"{finding.state:4}", fg=style[-1], bold="bold" in style)
    click.echo(f"{line_start}  ", nl=False)
    line(f"{finding.check:10} {finding.what}")
    if finding.state != "ok":
        line(f"{'':18}mend: {finding.mend}")
