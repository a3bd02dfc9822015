"""Tests of the command line as a process: pipes, Ctrl-C, a reader that leaves, and a real terminal."""

import os
import pty
import signal
import subprocess
from pathlib import Path

from tests.cli.conftest import Start
from tests.cli.scripted_node import ScriptedNode

WAIT_S = 10.0


def text_of(node: ScriptedNode) -> str:
    body = node.calls[0].args["body"]
    assert isinstance(body, dict)
    return str(body["messages"][0]["content"])


def on_terminal(start: Start, *args: str) -> str:
    """What a person sees: the command's output on a pseudo-terminal."""
    ours, theirs = pty.openpty()
    process = start(*args, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            seen += chunk
    except OSError:  # EIO: the last one at the other end has gone
        pass
    os.close(ours)
    assert process.wait(WAIT_S) == 0
    return seen.decode().replace("\r\n", "\n")


def test_pipe_joins_the_text(start: Start, node: ScriptedNode) -> None:
    """Text and pipe: first the text, then a blank line, then what the pipe brings."""
    process = start("run", "Summarize:", stdin=subprocess.PIPE)
    out, _ = process.communicate(b"some notes\n", WAIT_S)
    assert (process.returncode, out.decode()) == (0, "Hello, wörld.\n")
    assert text_of(node) == "Summarize:\n\nsome notes"


def test_file_as_stdin(start: Start, node: ScriptedNode, tmp_path: Path) -> None:
    """A file that stdin is redirected from counts as a pipe."""
    (tmp_path / "notes").write_text("from a file")
    with (tmp_path / "notes").open() as notes:
        assert start("run", "Summarize:", stdin=notes).wait(WAIT_S) == 0
    assert text_of(node) == "Summarize:\n\nfrom a file"


def test_dev_null_is_no_pipe(start: Start, node: ScriptedNode) -> None:
    """A service's empty standard input adds nothing."""
    assert start("run", "hi").wait(WAIT_S) == 0
    assert text_of(node) == "hi"


def test_silent_pipe_is_explained(start: Start) -> None:
    """A pipe that nobody writes to does not look like a hang."""
    process = start("run", "hi", stdin=subprocess.PIPE)
    assert process.stderr is not None
    assert b"waiting for standard input" in process.stderr.readline()


def test_interrupt_cancels_the_task(start: Start, node: ScriptedNode) -> None:
    """Ctrl-C in mid-answer ends with 130 and a word on stderr, and the node sees the call cancelled."""
    process = start("run", "hang")
    assert process.stdout is not None
    assert process.stdout.read(4) == b"Once"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, err) == (130, b"llmasos: interrupted\n")
    assert node.cancelled.wait(WAIT_S)


def test_reader_that_leaves(start: Start) -> None:
    """`llmasos run ... | head -1` ends quietly."""
    process = start("run", "flood")
    assert process.stdout is not None
    assert process.stdout.readline() == b"line after line\n"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(WAIT_S) == 1


def test_answer_on_a_terminal_is_harmless(start: Start) -> None:
    """A model cannot steer the terminal: what it would obey is shown as signs."""
    seen = on_terminal(start, "run", "evil")
    assert "a␛]0;owned␇b\ufffd31m␍\ufffdc" in seen
    assert "b7-1 waits behind 2 others" in seen


def test_table_on_a_terminal(start: Start) -> None:
    """Tables keep all their rows, leave out empty columns, and show no raw control character of a client's."""
    seen = on_terminal(start, "ps")
    assert "b7-2" in seen
    assert "SESSION" not in seen
    assert "x\x1b[31m" not in seen


def test_progress_on_a_terminal(start: Start) -> None:
    """A download shows a bar that moves on one line."""
    seen = on_terminal(start, "model", "pull", "m")
    assert "50 % of 98 MiB" in seen
    assert seen.endswith("m ok 98 MiB\n")
