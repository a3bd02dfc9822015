"""Tests of the repository's commands: what they say when called wrongly, or when something is missing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos_edge.services.catalogue import DEFAULT_MODEL, catalogue

ROOT = Path(__file__).parent.parent
TOOLS = ["bash", "cat", "cut", "dirname", "flock", "grep", "id", "mkdir", "sha256sum", "uname"]


def run(*arguments: str, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(root / "run"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(("arguments", "code"), [(["help"], 0), ([], 2), (["dmeo"], 2)], ids=["help", "none", "wrong"])
def test_usage(arguments: list[str], code: int) -> None:
    """Help lists the commands; no command, or a wrong one, is answered with it and exit 2."""
    answer = run(*arguments)
    assert answer.returncode == code
    assert {"demo", "test", "setup", "serve", "bench"} <= set((answer.stdout + answer.stderr).split())


@pytest.mark.parametrize("command", ["image", "image-test"])
def test_the_image_names_what_it_needs(command: str, bare_machine: Path) -> None:
    """The card's tools are asked for by the commands that need them, and by no others."""
    path = str(bare_machine.parent / "bin")
    missing = run(command, root=bare_machine, PATH=path).stderr
    assert re.search(r"system packages: .*mmdebstrap .*qemu-user-static", missing)
    assert "mmdebstrap" not in run("setup", root=bare_machine, PATH=path).stderr


@pytest.fixture
def bare_machine(tmp_path: Path) -> Path:
    """A clone on a machine with Python and little else: no compiler, no apt-get, no sudo."""
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    (tmp_path / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("run", "pyproject.toml", "requirements.txt", "requirements-build.txt"):
        shutil.copy(ROOT / name, clone)
    return clone


def test_setup_names_what_is_missing(bare_machine: Path) -> None:
    """Without the means to install, setup names packages and files, and the command that gets them."""
    answer = run("setup", root=bare_machine, PATH=str(bare_machine.parent / "bin"))
    assert answer.returncode == 1
    assert re.search(r"system packages: build-essential", answer.stderr)  # Python is there
    assert "SmolLM2-135M-Instruct.Q4_1.gguf" in answer.stderr
    assert re.search(r"apt-get install .*build-essential", answer.stderr)


def test_the_model_is_the_catalogue_s() -> None:
    """`run` looks for the file that the catalogue puts there."""
    script = (ROOT / "run").read_text()
    assert f"model={DEFAULT_MODEL}\n" in script
    assert f"model_file=.state/models/{catalogue()[DEFAULT_MODEL].file}\n" in script


def test_requirements_are_pinned_by_hash_and_name_no_host() -> None:
    """Every requirement has a version and a hash, and no file says where packages come from."""
    for path in ROOT.glob("requirements*.txt"):
        text = path.read_text()
        blocks = [block for block in re.split(r"\n(?! )", text) if block and not block.startswith("#")]
        assert all(re.match(r"[a-z0-9.-]+==[0-9]", block) and "--hash=sha256:" in block for block in blocks)
        assert "://" not in text
        assert "--index" not in text
