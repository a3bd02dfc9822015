"""llama.cpp's dry run: how large a model's buffers would be, without its weights; in a process of its own.

`python -m llmasos_edge.engine.dryrun FILE KV CELLS SEQUENCES` prints them in bytes, as JSON: a bad file may kill it.
"""

import json
import sys
from pathlib import Path
from typing import Final

from llmasos_edge.engine import sandbox
from llmasos_edge.engine.kv_pool import PREFIXES
from llmasos_edge.engine.llama import LlamaContext, LlamaModel, buffers

OWN_SEQUENCES: Final = PREFIXES + 2  # of a worker's pool, beside the kernel's: each has room for a row of logits


def dry_run(path: Path, kv: str, cells: int, sequences: int) -> dict[str, int]:
    """`compute` and `output`: bytes of a context's buffers; `repacks`: whether this CPU has a layout of its own."""
    model = LlamaModel(path, repack=True, dry=True)
    context = LlamaContext(model, cells, sequences + OWN_SEQUENCES, kv, threads=1)
    sizes = buffers()
    context.close()
    model.close()
    found = {
        kind: sum(size for name, size in sizes.items() if name.endswith(f" {kind}")) for kind in ("compute", "output")
    }
    return found | {"repacks": int(any("REPACK" in name for name in sizes))}


if __name__ == "__main__":
    file = Path(sys.argv[1])
    sandbox.enter(file)
    print(json.dumps(dry_run(file, sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
