"""Tests of the demo: the whole of it with a real broker and the real model, and how it ends when it can't go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from llmasos_edge.demo.screen import Paragraph, Screen
from llmasos_edge.resources import resource

PATIENCE_S = 100.0
SETTLE_S = 5.0


def left_in(folder: Path) -> set[int]:
    """Processes whose working directory is `folder`: everything that a demo started there has it."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found.add(int(process.name))
        except OSError:
            continue
    return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An empty folder to run a demo in, with nobody left in it afterwards."""
    yield tmp_path
    end = time.monotonic() + SETTLE_S
    while left_in(tmp_path) and time.monotonic() < end:
        time.sleep(0.05)
    left = left_in(tmp_path)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"left running: {left}"


def demo(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "llmasos_edge.demo", *arguments],
        cwd=place,
        env=os.environ | {"COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code, and all that it said."""
    try:
        said, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate()
    return process.returncode, said


def read_until(process: subprocess.Popen[str], words: str) -> None:
    """Until it has said a line with these words."""
    assert process.stdout is not None
    assert any(words in line for line in process.stdout), f"it ended without saying {words!r}"


def between(text: str, start: str, end: str) -> str:
    found = re.search(f"{re.escape(start)}(.*?){re.escape(end)}", text, re.DOTALL)
    assert found is not None, f"no {start!r} before {end!r} in:\n{text}"
    return found[1]


def test_the_whole_demo(place: Path) -> None:
    """A streamed answer, a summary, two valid and different alerts, the tasks and the memory; then nobody is left."""
    code, said = outcome(demo(place, "--ask", "Which is the capital of France?"))
    assert code == 0, said
    assert "Which is the capital of France?" in said
    answer, summary = (between(said, f"/{op}-", "tokens read") for op in ("chat", "run"))
    assert "/accepted" in answer
    assert "Paris" in answer
    assert "pump" in between(summary, "/accepted", "the whole reply")
    schema = yaml.safe_load((resource("configs") / "demo/apps/smoke-alarm.yaml").read_text())["spec"]["format"]
    alerts = [json.loads(" ".join(text.split())) for text in re.findall(r'\{"instruction"[^}]*\}', said)]
    assert len(alerts) == 2
    assert alerts[0] != alerts[1]
    assert all(Draft202012Validator(schema).is_valid(alert) for alert in alerts)
    assert [line.split()[2] for line in said.splitlines() if " TERMINATED " in line].count("critical") == 2
    assert "smollm2-135m.kv" in said
    assert "nothing is left running" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_demo_leaves_nobody(place: Path, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM while the node boots: the node is stopped first, and the exit code says why."""
    process = demo(place)
    read_until(process, "the daemon starts")
    assert len(left_in(place)) >= 2
    process.send_signal(number)
    code, said = outcome(process)
    assert code == 128 + number
    assert "interrupted" in said
    assert not left_in(place)


def test_a_killed_demo_takes_its_node_along(place: Path) -> None:
    """SIGKILL leaves the demo no chance to stop anything; node, broker, worker and subscriber end all the same."""
    process = demo(place)
    read_until(process, "$ mosquitto_pub")
    assert len(left_in(place)) >= 5
    process.kill()
    process.communicate()


def test_a_node_that_can_not_start_is_quoted(place: Path) -> None:
    """The demo fails at once, with the daemon's own words (here: a file stands where its state should be)."""
    (place / ".state/demo").mkdir(parents=True)
    (place / ".state/demo/state").write_text("")
    code, said = outcome(demo(place))
    assert code == 1
    assert "demo: failed: the node ended" in said
    assert "the state directory can't be used" in said


def test_two_demos_in_one_folder(place: Path) -> None:
    """The second is refused with the first one's pid, and the first goes on undisturbed."""
    first = demo(place)
    read_until(first, "the daemon starts")
    code, said = outcome(demo(place))
    assert code == 1
    assert f"pid {first.pid}" in said
    assert first.poll() is None
    first.terminate()
    outcome(first)


def test_an_empty_question_is_refused(place: Path) -> None:
    """`--ask ""` is wrong usage, told before anything is started."""
    code, said = outcome(demo(place, "--ask", " "))
    assert code == 2
    assert "the question is empty" in said
    assert not (place / ".state").exists()


def test_an_answer_is_broken_between_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """However the pieces fall, words stay whole, lines stay within the width, and escapes are made harmless."""
    monkeypatch.setenv("COLUMNS", "20")
    paragraph = Paragraph(Screen())
    for piece in ("A com", "puter needs", " an oper", "ating\nsystem", "\x1b[2J."):
        paragraph.add(piece)
    paragraph.end()
    assert capsys.readouterr().out == "    A computer needs\n    an operating\n    system␛[2J.\n"
