"""Tests of the commands that ask one thing: what they send, what they print, and their JSON."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmasos_edge.errors import BadRequest
from tests.cli.conftest import Invoke
from tests.cli.scripted_node import MEM, MIB, MODEL, RESULTS, STATUS, TRACES, ScriptedNode


@pytest.mark.parametrize(
    ("args", "call", "sent"),
    [
        (["status"], "status", {}),
        (["ps"], "ps", {"all": False}),
        (["ps", "-a"], "ps", {"all": True}),
        (["show", "t"], "show", {"task": "t"}),
        (["models"], "models", {}),
        (["mem"], "mem", {}),
        (["mem", "compact"], "mem.compact", {}),
        (["sessions"], "sessions", {}),
        (["session", "show", "s"], "session.show", {"session": "s", "client": None}),
        (["session", "park", "s", "--client", "c"], "session.park", {"session": "s", "client": "c"}),
        (["session", "rm", "s"], "session.rm", {"session": "s", "client": None}),
        (["apps"], "apps", {}),
        (["app", "show", "a"], "app.show", {"app": "a"}),
        (["config", "show"], "config.show", {}),
        (["reload"], "reload", {}),
        (["model", "verify", "m"], "model.verify", {"model": "m"}),
    ],
)
def test_result_as_json_is_unchanged(
    llmasos: Invoke, node: ScriptedNode, args: list[str], call: str, sent: dict[str, Any]
) -> None:
    """The call and its arguments are the protocol's, and --json prints the result as it came."""
    result = llmasos(*args, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == RESULTS[call]
    assert [(it.name, it.args) for it in node.calls] == [(call, sent)]
    assert llmasos(*args).exit_code == 0


@pytest.mark.parametrize(
    ("args", "call", "sent", "says"),
    [
        (["kill", "t"], "kill", {"task": "t"}, "t kill"),
        (["renice", "t", "batch"], "renice", {"task": "t", "class": "batch"}, "t renice"),
        (["suspend", "t"], "suspend", {"task": "t"}, "t suspend"),
        (["resume", "t"], "resume", {"task": "t"}, "t resume"),
        (["model", "rm", "m"], "model.rm", {"model": "m"}, "m model.rm"),
        (["model", "load", "m"], "model.load", {"model": "m"}, "m model.load"),
        (["model", "drop", "m"], "model.drop", {"model": "m"}, "m model.drop"),
        (["model", "pin", "m"], "model.pin", {"model": "m"}, "m model.pin"),
        (["model", "unpin", "m"], "model.unpin", {"model": "m"}, "m model.unpin"),
    ],
)
def test_commands_that_change_something(
    llmasos: Invoke, node: ScriptedNode, args: list[str], call: str, sent: dict[str, str], says: str
) -> None:
    """They send their call and say the new state."""
    result = llmasos(*args)
    assert (result.exit_code, result.stdout) == (0, f"{says}\n")
    assert [(it.name, it.args) for it in node.calls] == [(call, sent)]


def test_ps_in_a_pipe(llmasos: Invoke) -> None:
    """Tasks are aligned columns, and a client's name cannot play tricks on the terminal."""
    titles, first, second = llmasos("ps").stdout.splitlines()
    assert re.sub(" +", " ", first) == "b7-1 RUNNING normal control smollm2-135m - - 38 12 7 12 ms 3.5 s -"
    assert second.split()[3] == "x␛[31m\ufffdy"
    assert titles.index("MODEL") == first.index("smollm2") == second.index("smollm2")


def test_empty_list(llmasos: Invoke, node: ScriptedNode) -> None:
    """No rows are no lines in a pipe, and a word on stderr."""
    node.results["ps"] = []
    result = llmasos("ps")
    assert (result.stdout, result.stderr) == ("", "no tasks\n")


def test_models_sizes(llmasos: Invoke) -> None:
    """A size has its binary unit, and a flag is a word."""
    line = re.sub(" +", " ", llmasos("models").stdout.splitlines()[1])
    assert line.startswith("smollm2-135m loaded 98 MiB 274 MiB 1.5 s ago 3 4096 16 ")
    assert "yes" in line
    assert line.split()[-4:-1] == ["mapped", "+4.0", "%"]


def test_sessions_row(llmasos: Invoke) -> None:
    """Whose it is, where its state lies, and how much that is."""
    titles, row = llmasos("sessions").stdout.splitlines()
    assert titles.split() == ["SESSION", "CLIENT", "STATE", "MODEL", "MESSAGES", "TOKENS", "SAVED", "IDLE"]
    assert row.split()[:6] == ["holiday", "phone", "swapped", "smollm2-135m", "6", "512"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["session", "park", "holiday"], "holiday: smollm2-135m swapped"),
        (["session", "rm", "holiday"], "holiday removed"),
        (["mem", "compact"], "moved 5.0 MiB: 3 holes, the largest 20 MiB"),
    ],
)
def test_what_moves_memory_says_what_it_did(llmasos: Invoke, args: list[str], says: str) -> None:
    """In a line that a person can read."""
    assert llmasos(*args).stdout.splitlines()[0] == says


def test_a_load_counts_up(llmasos: Invoke, node: ScriptedNode) -> None:
    """In `models` and `status`, and once in a log that watches it."""
    node.results["models"] = [MODEL | {"state": "loading", "progress": 0.437}]
    node.results["status"] = STATUS | {"models": [{"id": "m", "state": "loading", "progress": 0.437}]}
    assert "loading 43 %" in llmasos("models").stdout
    assert "m loading 43 %" in llmasos("status").stdout
    assert llmasos("model", "load", "m").stderr == "m: loading\n"


def test_apps_trigger(llmasos: Invoke) -> None:
    """An app's trigger is shown as its topic."""
    assert "  zigbee2mqtt/+/smoke  " in llmasos("apps").stdout


def test_status_words(llmasos: Invoke) -> None:
    """The status names node, board, readiness, broker, HTTP, models and tasks."""
    text = llmasos("status").stdout
    for words in (
        "home/kitchen: online, ready",
        "board   raspberry-pi-4\n",
        "mqtt://127.0.0.1:18830 (connected",
        "http    http://127.0.0.1:8000 (this machine alone)\n",
        "smollm2-135m loaded",
        "memory  short (drop): the machine has 12 of 800 MiB left\n",
        "1 READY, 1 RUNNING\n",
    ):
        assert words in text


def test_mem_says_when_memory_is_short(llmasos: Invoke, node: ScriptedNode) -> None:
    """And nothing while it is not."""
    assert "memory is short (drop): the machine has 12 of 800 MiB left" in llmasos("mem").stdout
    node.results["mem"] = MEM | {"pressure": {"level": "none", "why": None}}
    assert "short" not in llmasos("mem").stdout


def test_show_text(llmasos: Invoke) -> None:
    """The text so far is shown as lines."""
    assert "text: |\n  Hello\n  world\n" in llmasos("show", "b7-1").stdout


def test_dmesg(llmasos: Invoke, node: ScriptedNode) -> None:
    """The trace is a line an event; with --json an object a line."""
    assert llmasos("dmesg").stdout.splitlines()[1] == "[       4.321] dispatch             task=b7-1 tokens=16"
    assert [json.loads(line) for line in llmasos("dmesg", "-f", "--json").stdout.splitlines()] == TRACES
    assert [call.args for call in node.calls] == [{"follow": False}, {"follow": True}]


def test_pull_tells_stages(llmasos: Invoke) -> None:
    """In a log the progress is a line for each stage, apart from the result."""
    result = llmasos("model", "pull", "m", "--json")
    assert result.stderr == "m: download\nm: verify\n"
    assert json.loads(result.stdout) == {"id": "m", "sha256": "0" * 64, "size": 98 * MIB}


def test_add_sends_the_whole_path(
    llmasos: Invoke, node: ScriptedNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon is elsewhere: a relative path is made absolute."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert llmasos("model", "add", "m.gguf", "mine").exit_code == 0
    assert node.calls[0].args == {"path": str(tmp_path / "m.gguf"), "name": "mine"}


def test_json_hides_nothing_from_a_terminal(llmasos: Invoke, node: ScriptedNode) -> None:
    """In JSON, what a terminal would obey is escaped, and reads back the same."""
    node.results["reload"] = {"a": "\x1b\x9b\u202eü\n"}
    text = llmasos("reload", "--json").stdout
    assert not set(text) & set("\x1b\x9b\u202e")
    assert json.loads(text) == node.results["reload"]


def test_error_text_is_harmless(llmasos: Invoke, node: ScriptedNode) -> None:
    """An error that quotes somebody's text cannot steer the terminal."""
    node.results["reload"] = BadRequest("bad \x1b]0;x\x07")
    assert "\x1b" not in llmasos("reload").stderr


def test_verify_without_a_node(llmasos: Invoke, tmp_path: Path) -> None:
    """With --state the store is read directly: a model that is not there is unknown, and nothing is made."""
    assert llmasos("model", "verify", "nope", "--state", str(tmp_path)).exit_code == 1
    assert not (tmp_path / "models").exists()
    (tmp_path / "models").mkdir()
    result = llmasos("model", "verify", "nope", "--state", str(tmp_path))
    assert result.exit_code == 1
    assert "unknown_model: nope is not in the store" in result.stderr


def test_config_check(llmasos: Invoke, node: ScriptedNode, tmp_path: Path) -> None:
    """A wrong node file fails with its line; no node is asked."""
    path = tmp_path / "node.yaml"
    path.write_text("apiVersion: llmasos/v1\nkind: Node\nmetadata: {name: kitchen}\nspec: {boardd: auto}\n")
    result = llmasos("config", "check", str(path))
    assert result.exit_code == 1
    assert f"{path}:4" in result.stderr
    assert node.calls == []


def test_app_check(llmasos: Invoke, node: ScriptedNode, tmp_path: Path) -> None:
    """A right app file is ok, a wrong one fails with its line, a missing one is unknown; no node is asked."""
    path = tmp_path / "a.yaml"
    head = "apiVersion: llmasos/v1\nkind: App\nmetadata: {name: a, description: An example.}\n"
    path.write_text(head + 'spec: {prompt: "Say {{ input }}"}\n')
    assert json.loads(llmasos("app", "check", str(path), "--json").stdout) == {"file": str(path), "ok": True}
    path.write_text(head + "spec: {promt: x}\n")
    result = llmasos("app", "check", str(path))
    assert result.exit_code == 1
    assert f"{path}:4" in result.stderr
    assert llmasos("app", "check", "nowhere").exit_code == 1
    assert node.calls == []
