"""Test of the quantizations that other tests use."""

import os
from pathlib import Path

from llmasos_edge.engine.gguf import read_header
from tests.quantized import quantized

CACHE = Path(".state/cache/models")


def test_each_kind_is_a_model_of_its_own_size() -> None:
    """The same shape and vocabulary in other bytes; and the file that is there is taken."""
    source = Path(os.environ["LLMASOS_MODELS"]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    small, large = (quantized(source, CACHE, kind) for kind in ("Q4_0", "Q8_0"))
    headers = [read_header(path) for path in (small, source, large)]
    assert len({(header.block_count, header.vocab_size) for header in headers}) == 1
    assert headers[0].tensor_bytes < headers[1].tensor_bytes < headers[2].tensor_bytes
    made = large.stat().st_mtime_ns
    assert quantized(source, CACHE, "Q8_0") == large
    assert large.stat().st_mtime_ns == made
