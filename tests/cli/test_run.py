"""Tests of `run` and `wait` in this process: what is sent, and what is printed where."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Invoke
from tests.cli.scripted_node import ScriptedNode


def submitted(node: ScriptedNode) -> dict[str, Any]:
    (call,) = node.calls
    assert call.name == "submit"
    return call.args


def test_answer_on_stdout(llmasos: Invoke, node: ScriptedNode) -> None:
    """The answer's text and one newline go to stdout, nothing to stderr."""
    result = llmasos("run", "What", "is", "it?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello, wörld.\n", "")
    assert submitted(node) == {
        "op": "chat",
        "body": {"messages": [{"role": "user", "content": "What is it?"}], "stream": True},
        "detach": False,
    }


def test_options_are_sent(llmasos: Invoke, node: ScriptedNode, tmp_path: Path) -> None:
    """Each option becomes its field, times in milliseconds and the schema read."""
    (tmp_path / "s.json").write_text('{"type": "object"}')
    options = "--model=m --class=batch --deadline=1.5s --session=s --max-tokens=5 --temperature=0 --seed=7"
    shape = f"--format={tmp_path / 's.json'}"
    assert llmasos("run", *options.split(" "), shape, "--json", "echo").exit_code == 0
    assert submitted(node)["body"] == {
        "messages": [{"role": "user", "content": "echo"}],
        "model": "m",
        "class": "batch",
        "deadline_ms": 1500,
        "session": "s",
        "max_tokens": 5,
        "temperature": 0.0,
        "seed": 7,
        "format": {"type": "object"},
    }


@pytest.mark.parametrize(("text", "ms"), [("500ms", 500), ("5s", 5000), ("2min", 120_000), ("0.5s", 500)])
def test_deadlines(llmasos: Invoke, node: ScriptedNode, text: str, ms: int) -> None:
    """A deadline has its unit."""
    llmasos("run", "--deadline", text, "echo")
    assert submitted(node)["body"]["deadline_ms"] == ms


@pytest.mark.parametrize(
    "args",
    [
        ["--deadline", "5", "x"],
        ["--deadline", "0s", "x"],
        ["--deadline", "-5s", "x"],
        ["--temperature", "-1", "x"],
        ["--max-tokens", "0", "x"],
        ["--format", "/nonexistent", "x"],
        ["--format", "/dev/null", "x"],
        ["--app", "a", "--model", "m", "x"],
        [],
        ["-"],
        ["  "],
    ],
)
def test_bad_usage(llmasos: Invoke, node: ScriptedNode, args: list[str]) -> None:
    """Values that make no sense, and no text at all, are refused before the node is asked."""
    result = llmasos("run", *args, stdin="")
    assert result.exit_code == 2
    assert node.calls == []


@pytest.mark.parametrize("args", [["run", "--app", "a"], ["run", "--app", "a", "-"]])
def test_text_from_stdin(llmasos: Invoke, node: ScriptedNode, args: list[str]) -> None:
    """Without a text, or with -, standard input is the text; an app gets it as its input."""
    assert llmasos(*args, stdin="some\nnotes\n").stdout == "some\nnotes\n"
    assert submitted(node)["op"] == "run"
    assert submitted(node)["body"] == {"app": "a", "input": "some\nnotes\n", "stream": True}


def test_stdin_that_is_not_text(llmasos: Invoke, node: ScriptedNode) -> None:
    """Bytes that are no UTF-8 are refused."""
    result = llmasos("run", stdin=b"\xff\xfe")
    assert result.exit_code == 2
    assert "UTF-8" in result.stderr


def test_json_prints_the_reply(llmasos: Invoke, node: ScriptedNode) -> None:
    """With --json stdout is the reply alone, and the node is not asked to stream."""
    result = llmasos("run", "--json", "hi")
    assert json.loads(result.stdout)["output"] == {"text": "Hello, wörld.", "finish_reason": "stop"}
    assert "stream" not in submitted(node)["body"]


def test_detach(llmasos: Invoke, node: ScriptedNode) -> None:
    """--detach prints the task's id alone, so that a script can wait for it."""
    assert llmasos("run", "--detach", "hi").stdout == "b7-1\n"
    assert submitted(node)["detach"] is True
    assert json.loads(llmasos("run", "--detach", "--json", "hi").stdout) == {"task": "b7-1"}


def test_new_attempt(llmasos: Invoke) -> None:
    """A task that runs again says so on stderr, and its answer starts on a new line."""
    result = llmasos("run", "crash")
    assert result.stdout == "Half an\nWhole answer\n"
    assert "runs again" in result.stderr


def test_reply_without_deltas_that_was_cut(llmasos: Invoke) -> None:
    """A text that did not stream is printed from the reply; one cut at its limit is said to be."""
    result = llmasos("run", "silent")
    assert result.stdout == "All at once\n"
    assert "--max-tokens" in result.stderr


def test_pipe_gets_the_text_unchanged(llmasos: Invoke) -> None:
    """What is no terminal gets the model's text as it is."""
    assert llmasos("run", "evil").stdout_bytes == "a\x1b]0;owned\x07b\x9b31m\r\u202ec\td\n".encode()


def test_wait(llmasos: Invoke, node: ScriptedNode) -> None:
    """`wait` prints the answer like `run`; with --json the reply."""
    assert llmasos("wait", "b7-1").stdout == "Hello, wörld.\n"
    assert json.loads(llmasos("wait", "b7-1", "--json").stdout)["task"] == "b7-1"
    assert node.calls[0].args == {"task": "b7-1"}


def test_wait_for_a_failed_task(llmasos: Invoke) -> None:
    """The error of a task that failed is the command's."""
    assert llmasos("wait", "engine_failed").exit_code == 1
