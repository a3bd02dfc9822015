"""Tests of the dry run: it foretells what llama.cpp allocates, and a bad file ends its process alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos_edge.engine.dryrun import OWN_SEQUENCES
from llmasos_edge.engine.llama import LlamaContext, LlamaModel, buffers


def run(path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmasos_edge.engine.dryrun", str(path), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("kv", "cells", "sequences"), [("q8_0", 1024, 1), ("f16", 2048, 16)])
def test_it_foretells_the_buffers(tiny: Path, kv: str, cells: int, sequences: int) -> None:
    """Compute and output buffer of a context of the same shape, to the byte that the log tells."""
    found = json.loads(run(tiny, kv, cells, sequences).stdout)
    model = LlamaModel(tiny)
    context = LlamaContext(model, cells, sequences + OWN_SEQUENCES, kv, threads=1)
    sizes = buffers()
    context.close()
    model.close()
    assert (found["compute"], found["output"]) == (sizes["CPU compute"], sizes["CPU output"])


def test_it_tells_whether_weights_repack(quantizations: dict[str, Path], tiny: Path) -> None:
    """Q4_1 has no other layout anywhere; Q4_0 has one where there is AVX2 or the dot product."""
    assert json.loads(run(tiny, "q8_0", 256, 1).stdout)["repacks"] == 0
    if {"avx2", "asimddp"} & set(Path("/proc/cpuinfo").read_text().split()):
        assert json.loads(run(quantizations["Q4_0"], "q8_0", 256, 1).stdout)["repacks"] == 1


def test_a_bad_file_is_an_exit_status(tmp_path: Path) -> None:
    """What llama.cpp refuses is told on stderr."""
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    done = run(tmp_path / "bad.gguf", "q8_0", 256, 1)
    assert done.returncode != 0
    assert "refuses bad.gguf" in done.stderr
