"""What llama.cpp allocates for a model: `python -m benchmarks.buffers CELLS SEQUENCES` prints it, in bytes, as JSON."""

import json
import os
import re
import sys
from typing import Final

from benchmarks.node import model_file
from llmasos_edge.engine.llama import L, LlamaContext, LlamaModel, set_fields
from llmasos_edge.errors import Panic
from llmasos_edge.services.monitor import process_memory

MIB: Final = 1 << 20
lines: Final[list[str]] = []


@L.llama_log_callback  # type: ignore[untyped-decorator]
def _keep(_level: int, text: bytes, _data: object) -> None:
    lines.append(text.decode(errors="replace"))


def _anonymous() -> int:
    memory = process_memory(os.getpid())
    if memory is None:
        raise Panic("buffers: this process has no smaps_rollup")
    return memory.anonymous


def _vocabulary() -> int:
    """Bytes that this process grows by when only the vocabulary is loaded."""
    L.llama_backend_init()
    before = _anonymous()
    parameters = set_fields(L.llama_model_default_params(), vocab_only=True)
    L.llama_model_load_from_file(bytes(model_file()), parameters)
    return _anonymous() - before


def main() -> None:
    cells, sequences = (int(argument) for argument in sys.argv[1:3])
    L.llama_log_set(_keep, None)
    sizes: dict[str, int] = {"vocabulary": _vocabulary()}
    model = LlamaModel(model_file())
    LlamaContext(model, cells, sequences, "q8_0", len(os.sched_getaffinity(0)))
    for name, mib in re.findall(r"(KV|compute|output) +buffer size = +([\d.]+) MiB", "".join(lines)):
        sizes[name] = sizes.get(name, 0) + int(float(mib) * MIB)
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
