"""Tests of the build's steps: what is kept, what is made again, and what a failure says."""

from pathlib import Path

import pytest

from image.steps import Steps, read_tree, run


def test_a_step_is_made_once_for_the_same_inputs(tmp_path: Path) -> None:
    """Other inputs make it again, and the older result goes."""
    steps, built = Steps(tmp_path), []

    def make(value: bytes) -> Path:
        def build(folder: Path) -> None:
            built.append(value)
            (folder / "it").write_bytes(value)

        return steps.make("part", [value], build)

    first = make(b"1")
    assert make(b"1") == first
    assert (make(b"2") / "it").read_bytes() == b"2"
    assert built == [b"1", b"2"]
    assert not first.exists()


def test_steps_with_longer_names_are_left_alone(tmp_path: Path) -> None:
    """`boot` and `boot-generic` are two steps."""
    steps = Steps(tmp_path)
    other = steps.make("boot-generic", [b"1"], lambda folder: None)
    steps.make("boot", [b"1"], lambda folder: None)
    steps.make("boot", [b"2"], lambda folder: None)
    assert other.exists()


def test_what_failed_is_not_kept(tmp_path: Path) -> None:
    """A step that broke is tried again."""

    def build(folder: Path) -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        Steps(tmp_path).make("part", [b"1"], build)
    assert not list(tmp_path.glob("part-*"))


def test_a_failing_command_says_where_to_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its last lines are shown, and the log is named."""
    log = tmp_path / "logs" / "sh.log"
    with pytest.raises(SystemExit, match=f"sh failed with 3: see {log}"):
        run(["sh", "-c", "echo broken; exit 3"], log)
    assert "broken" in capsys.readouterr().err


def test_a_command_reads_what_it_is_given(tmp_path: Path) -> None:
    """Text goes in, output into the log, variables into the environment."""
    run(["sh", "-c", 'cat; echo "$X"'], tmp_path / "log", text="in\n", extra={"X": "y"})
    assert (tmp_path / "log").read_text() == "in\ny\n"


def test_inputs_are_names_modes_and_contents(tmp_path: Path) -> None:
    """A file that is renamed, made a program or changed makes a step's inputs others."""
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "a").write_text("1")
    seen = [tuple(read_tree(folder))]
    (folder / "a").chmod(0o755)
    seen.append(tuple(read_tree(folder)))
    (folder / "a").rename(folder / "b")
    seen.append(tuple(read_tree(folder)))
    (folder / "b").write_text("2")
    seen.append(tuple(read_tree(folder)))
    assert len(set(seen)) == 4
