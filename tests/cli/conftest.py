"""The command line's fixtures: a scripted node, the command in this process, and the command as a process."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llmasos_edge.cli.main import cli
from llmasos_edge.ipc.control import ControlServer
from tests.cli.scripted_node import ScriptedNode

COMMAND = [sys.executable, "-c", "from llmasos_edge.cli.main import main; main()"]

Invoke = Callable[..., Result]
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def node() -> ScriptedNode:
    return ScriptedNode()


@pytest.fixture
def control(tmp_path: Path, node: ScriptedNode, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The socket of the scripted node, which the environment names."""
    path = tmp_path / "control.sock"
    monkeypatch.setenv("LLMASOS_SOCKET", str(path))
    server = ControlServer(path, node.handle)
    server.start()
    yield path
    server.stop()


@pytest.fixture
def llmasos(control: Path) -> Invoke:
    """The command line in this process, its standard input a text and not a terminal."""

    def invoke(*args: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(cli, args, input=stdin, prog_name="llmasos", catch_exceptions=False)

    return invoke


@pytest.fixture
def start(control: Path) -> Iterator[Start]:
    """The command line as a process of its own; what is still alive at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def spawn(*args: str, **streams: object) -> subprocess.Popen[bytes]:
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        process: subprocess.Popen[bytes] = subprocess.Popen([*COMMAND, *args], **given, env=dict(os.environ))  # type: ignore[call-overload]
        started.append(process)
        return process

    yield spawn
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
