"""The nearest peer: the server among llama-cpp-python's examples, on the libraries that were built for llama-server."""

import json
import os
import shutil
import sys
from hashlib import sha256
from pathlib import Path
from typing import Final

from benchmarks.node import MODEL, ROOT, STATE, model_file
from benchmarks.peer import FOLDER
from benchmarks.peer_server import PeerServer, free_port
from image.requirements import engine_source
from image.steps import run

REQUIREMENTS: Final = ROOT / "benchmarks" / "requirements-example-server.txt"
START: Final = ROOT / "benchmarks" / "example_server_start.py"
Q8_0: Final = 8  # of ggml_type


class ExampleServer(PeerServer):
    """`libraries`: the folder where llama-server and its libraries are. As there: all cores, q8_0 KV in one buffer for
    all, flash attention, steps of 512, weights mapped as they are.
    """

    name = "example-server"
    health = "/healthz"

    def __init__(self, libraries: Path, sequences: int, cells: int) -> None:
        if not (libraries / "libmtmd.so").is_file():
            sys.exit(
                f"benchmarks: no libmtmd.so in {libraries}: the example server takes the libraries of llama-server"
            )
        source, port, cores = engine_source(FOLDER), free_port(), len(os.sched_getaffinity(0))
        self.settings: dict[str, object] = {
            "n_ctx": cells,
            "n_seq_max": sequences,
            "kv_unified": True,
            "n_batch": 512,
            "n_ubatch": 512,
            "threads": cores,
            "threads_batch": cores,
            "flash_attn": True,
            "type_k": Q8_0,
            "type_v": Q8_0,
            "use_mmap": True,
        }
        model = {"path": str(model_file()), "alias": MODEL, **self.settings}
        STATE.mkdir(parents=True, exist_ok=True)
        config = STATE / f"{self.name}.json"
        config.write_text(json.dumps({"server": {"port": port}, "model": model}))
        places = {"PYTHONPATH": source, "LLAMA_CPP_LIB_PATH": libraries, "MTMD_CPP_LIB": libraries}
        command = (_python(), "-P", START, source / "examples" / "server" / "server.py", config)
        super().__init__(port, command, {name: str(place) for name, place in places.items()})

    def __str__(self) -> str:
        return f"llama-cpp-python's example server {json.dumps(self.settings)}, weights not repacked"


def _python() -> Path:
    """The Python of an environment with what the server needs, made the first time."""
    key = sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    made = FOLDER / f"example-server-{key}"
    if not made.is_dir():
        print("==> what the example server needs", flush=True)
        part = made.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        run([sys.executable, "-m", "venv", "--without-pip", part], FOLDER / "venv.log")
        pip = (sys.executable, "-m", "pip", "--python", part / "bin" / "python", "--no-input")
        flags = ("--no-deps", "--require-hashes", "--only-binary", ":all:")
        run([*pip, "install", *flags, "-r", REQUIREMENTS], FOLDER / "install.log")
        part.rename(made)
    return made / "bin" / "python"
