"""Tests of the command line against a real node: it streams, is interrupted, and stands in pipes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.integration.real_node import RealNode, eventually

Start = Callable[..., subprocess.Popen[bytes]]
COMMAND = [sys.executable, "-c", "from llmasos_edge.cli.main import main; main()"]


@pytest.fixture
def start(node: RealNode) -> Iterator[Start]:
    """`llmasos` as a process, for this node; what is left of it is ended."""
    started: list[subprocess.Popen[bytes]] = []

    def spawn(*words: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*COMMAND, *words],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"LLMASOS_SOCKET": str(node.runtime / "control.sock")},
        )
        started.append(process)
        return process

    yield spawn
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[bytes], stdin: bytes | None = None) -> str:
    """The whole output of a command that succeeds."""
    out, err = process.communicate(stdin, timeout=60)
    assert process.returncode == 0, err.decode()
    return out.decode()


def test_run_streams_its_answer(start: Start) -> None:
    """The first words are there while the rest is still being made."""
    process = start("run", "--temperature", "0", "--max-tokens", "60", "Tell me a long story.")
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 4096)
    assert first
    assert process.poll() is None
    rest = said(process)
    assert len(rest) > len(first)


def test_ctrl_c_cancels_the_task(node: RealNode, start: Start) -> None:
    """Exit 130, and nothing goes on in the node."""
    process = start("run", "--max-tokens", "400", "Tell me a long story.")
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 10)
    assert node.tasks()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    eventually(lambda: not node.tasks(), "the task is cancelled", 5)


def test_a_reader_that_leaves_cancels_the_task(node: RealNode, start: Start) -> None:
    """`llmasos run ... | head -1`: the pipe closes, and the node does not work for nobody."""
    process = start("run", "--max-tokens", "400", "Tell me a long story.")
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 10)
    process.stdout.close()
    process.stdout = None
    assert process.wait(20) != 0
    eventually(lambda: not node.tasks(), "the task is cancelled", 5)


def test_pipes_work_in_both_directions(start: Start) -> None:
    """Text comes on standard input; the answer is plain text on standard output; --json is JSON."""
    command = ["run", "--temperature", "0", "--max-tokens", "8"]
    answer = said(start(*command, stdin=subprocess.PIPE), b"What is a mutex?\n")
    assert answer.strip()
    assert "\x1b" not in answer
    reply = json.loads(said(start(*command, "--json", "What is a mutex?")))
    assert reply["status"] == "ok"
    assert reply["output"]["text"].strip() == answer.strip()


def test_status_ps_mem_models_and_dmesg_tell_of_a_real_node(start: Start) -> None:
    """Each as JSON, of the shape that the contract gives."""
    status, memory, models = (json.loads(said(start(word, "--json"))) for word in ("status", "mem", "models"))
    assert status["ready"] is True
    assert 0 < memory["charged"] <= memory["budget"]
    assert sum(region["bytes"] for region in memory["regions"]) == memory["charged"]
    assert memory["measured"] <= memory["charged"] <= memory["budget"]
    taken = {region["name"]: (region["bytes"], region["measured"]) for region in memory["regions"]}
    assert all(0 <= measured <= charged for charged, measured in taken.values()), taken
    assert taken["smollm2-135m.weights"][1] > 90 << 20
    assert sum(measured for _, measured in taken.values()) == memory["measured"]
    assert models[0]["memory"]["dry_runs"]
    assert [model["id"] for model in models] == ["smollm2-135m"]
    assert json.loads(said(start("ps", "--json", "-a"))) != []
    assert "model.loaded" in said(start("dmesg"))


def test_detach_and_wait(start: Start) -> None:
    """The id now, the answer later; a task killed in between says so."""
    task = said(start("run", "--detach", "--max-tokens", "8", "Hello")).strip()
    assert json.loads(said(start("wait", "--json", task)))["task"] == task
    task = said(start("run", "--detach", "--max-tokens", "400", "Hello")).strip()
    said(start("kill", task))
    waiting = start("wait", task)
    _, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 1
    assert b"killed by the operator" in err
