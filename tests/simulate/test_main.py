"""Tests of the command: what it prints, writes and refuses."""

import json
import sys
from pathlib import Path

import pytest

from llmasos_edge.services import workload
from llmasos_edge.simulate.main import main


def simulate(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Its exit code."""
    monkeypatch.setattr(sys, "argv", ["llmasos-simulate", *arguments])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


def test_policies_side_by_side(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each, and one for each of its classes."""
    assert simulate(monkeypatch, "--tasks", "30", "--policy", "fcfs", "--policy", "sjf") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "30 tasks · llmasos-simulate: poisson, mixed lengths, load 0.9, seed 1"
    assert [each.split()[0] for each in lines[4:6]] == ["fcfs", "sjf"]
    assert sum(each.startswith("sjf") and " interactive " in each for each in lines) == 1


def test_every_figure_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Under every policy, if none is named."""
    assert simulate(monkeypatch, "--tasks", "10", "--load", "0.3", "--json") == 0
    shape = json.loads(capsys.readouterr().out)
    assert shape["tasks"] == 10
    assert [each["policy"] for each in shape["policies"]][:2] == ["fcfs", "sjf"]
    assert shape["policies"][0]["all"]["turnaround"].keys() == {"mean", "p99"}


def test_a_workload_is_saved_and_replayed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The same figures come of the file as of what it was made of."""
    file, picture = str(tmp_path / "w"), tmp_path / "w.svg"
    assert simulate(monkeypatch, "--tasks", "15", "--save", file) == 0
    assert capsys.readouterr().out == f"{file}: 15 tasks\n"
    outputs = []
    for source in (["--tasks", "15"], [file, "--picture", str(picture)]):
        assert simulate(monkeypatch, *source, "--policy", "priority", "--json") == 0
        outputs.append(json.loads(capsys.readouterr().out))
        del outputs[-1]["policies"][0]["replayed_in_s"]
    assert outputs[0] == outputs[1]
    assert picture.read_text().startswith("<svg")


def test_a_machine_is_taken_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its models and rates, with tasks made up for them."""
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    simulate(monkeypatch, "--tasks", "2", "--save", one)
    text = Path(one).read_text().replace("smollm2-135m", "mine")
    Path(one).write_text(text)
    assert simulate(monkeypatch, "--machine", one, "--tasks", "4", "--save", other) == 0
    assert {each.model for each in workload.read(Path(other)).arrivals} == {"mine"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "llmasos-simulate: nowhere: No such file"),
        (["--load", "0"], "0: 0.001 at least"),
        (["--policy", "lottery"], "lottery"),
        (["--tasks", "3", "--picture", "/nowhere/x.svg"], "/nowhere/x.svg: No such file"),
    ],
)
def test_mistakes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    """Exit code 2, and what is wrong."""
    assert simulate(monkeypatch, *arguments) == 2
    assert says in capsys.readouterr().err


def test_help_has_examples(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of what people come for."""
    assert simulate(monkeypatch, "--help") == 0
    assert "llmasos-simulate node.workload --picture node.svg" in capsys.readouterr().out
