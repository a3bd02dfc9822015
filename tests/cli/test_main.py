"""Tests of the command line's frame: help, exit codes, hints, which socket, and what is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmasos_edge import __version__
from llmasos_edge.cli.main import COMMANDS, cli
from tests.cli.conftest import Invoke
from tests.cli.scripted_node import ScriptedNode

GROUPS = {
    "app": ["show", "check"],
    "config": ["check", "show"],
    "model": ["pull", "add", "rm", "verify", "selftest", "load", "drop", "pin", "unpin"],
    "session": ["show", "park", "rm"],
}
PATHS = [(name,) for name in COMMANDS if name not in GROUPS] + [(name, sub) for name in GROUPS for sub in GROUPS[name]]
PATHS += [("mem", "compact")]


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_command_has_json_and_an_example(path: tuple[str, ...]) -> None:
    """The help of each command offers --json and shows a command line."""
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert f"\n    llmasos {' '.join(path)}" in result.stdout or f"| llmasos {' '.join(path)}" in result.stdout


def test_version() -> None:
    """--version prints the name and the version."""
    assert CliRunner().invoke(cli, ["--version"]).stdout == f"llmasos {__version__}\n"


@pytest.mark.parametrize(
    ("code", "exit_code", "hint"),
    [
        ("unknown_model", 1, "model pull"),
        ("deadline_exceeded", 1, "--deadline"),
        ("cancelled", 1, "try again in 1.5 s"),
        ("unreachable", 3, ""),
        ("not_permitted", 4, ""),
        ("no_memory", 4, "llmasos mem"),
        ("queue_full", 4, "try again in 1.5 s"),
    ],
)
def test_node_errors(llmasos: Invoke, code: str, exit_code: int, hint: str) -> None:
    """An error of the node's is words and a hint on stderr, an exit code, and JSON on stdout where asked for."""
    result = llmasos("run", code)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert result.stderr.startswith(f"llmasos: {code}: it went wrong\n")
    assert hint in result.stderr
    result = llmasos("run", "--json", code)
    assert result.exit_code == exit_code
    assert json.loads(result.stdout)["error"] == {
        "code": code,
        "message": "it went wrong",
        "retry_after_ms": 1500,
        "details": {"needed": 2},
    }


@pytest.mark.parametrize(
    "args", [["bogus"], ["ps", "--bogus"], ["kill"], ["renice", "t", "urgent"], ["ps", "extra"], ["model", "bogus"]]
)
def test_bad_usage(llmasos: Invoke, node: ScriptedNode, args: list[str]) -> None:
    """What is typed wrong ends with 2, before anything is asked of the node."""
    assert llmasos(*args).exit_code == 2
    assert node.calls == []


@pytest.mark.parametrize("args", [["ps"], ["run", "hi"], ["status", "--json"], ["wait", "t"], ["model", "pull", "m"]])
def test_no_node(tmp_path: Path, args: list[str]) -> None:
    """Without a daemon the exit code is 3, and the message names the socket and how to start one."""
    result = CliRunner().invoke(cli, ["--socket", str(tmp_path / "none"), *args])
    assert result.exit_code == 3
    assert str(tmp_path / "none") in result.stderr
    assert "llmasosd --config" in result.stderr


def test_socket_option_wins(llmasos: Invoke, tmp_path: Path) -> None:
    """--socket stands above $LLMASOS_SOCKET, which is used without it."""
    assert llmasos("ps").exit_code == 0
    assert llmasos("--socket", str(tmp_path / "none"), "ps").exit_code == 3


def test_default_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty $LLMASOS_SOCKET counts as none."""
    monkeypatch.setenv("LLMASOS_SOCKET", "")
    result = CliRunner().invoke(cli, ["ps"])
    assert result.exit_code in (0, 3)
    assert result.exit_code == 0 or "/run/llmasos/control.sock" in result.stderr


def test_start_imports_little(control: Path) -> None:
    """A command in a pipe loads neither rich nor the packages of the daemon, so that it starts fast."""
    code = (
        "import sys; from llmasos_edge.cli.main import cli; cli(['ps'], standalone_mode=False); "
        "heavy = {'rich', 'msgspec', 'yaml', 'jinja2', 'asyncio', 'psutil', 'paho'}; print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
