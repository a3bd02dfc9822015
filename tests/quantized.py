"""Other quantizations of a model, made once and kept: for tests and benchmarks of several models and what they take."""

import ctypes
import os
from pathlib import Path

from llmasos_edge.engine.llama import L, set_fields
from llmasos_edge.errors import EngineFailed


def quantized(source: Path, folder: Path, kind: str) -> Path:
    """The model `source` as `kind` (Q8_0, Q4_0, Q4_K_M, Q5_K_M, Q6_K, IQ4_NL), in `folder`; made if it is not there.

    Rows that do not divide into a K-quant's blocks get llama.cpp's fallback (Q5_0 for Q4_K): SmolLM2's have 576 values.
    """
    path = folder / f"{source.stem.rpartition('.')[0] or source.stem}.{kind}.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{path.name}.{os.getpid()}.part"
    ftype = getattr(L, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters = set_fields(L.llama_model_quantize_default_params(), ftype=ftype, allow_requantize=True)
    if status := L.llama_model_quantize(bytes(source), bytes(part), ctypes.byref(parameters)):
        raise EngineFailed(f"{source.name} can't be made {kind}: llama_model_quantize gives {status}")
    part.rename(path)
    return path
