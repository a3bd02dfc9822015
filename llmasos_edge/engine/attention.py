"""This file is the door to native/attention.c: it is loaded before llama.cpp, and used if it computes the same bits."""

from __future__ import annotations

import ctypes
import functools
import random
from array import array
from pathlib import Path
from typing import Any, Final

from llmasos_edge.engine.version import VERSION

NAME: Final = f"llmasos-attention-{VERSION}.so"  # beside llama.cpp's libraries, built with their headers
F32, F16, Q8_0 = 0, 1, 8  # ggml_type
CPU: Final = 0  # ggml_backend_dev_type
SIZE, HEADS, KV_HEADS, QUERIES, CELLS = 64, 6, 2, 5, 128
BLOCK: Final = 32  # values of q8_0 that have a scale
MASKED: Final = 0xFC00  # minus infinity


class _Memory(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("address", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def load(folder: Path) -> ctypes.CDLL | None:
    """None if it was not built. Visible to all libraries loaded after it: llama.cpp's own call finds it first."""
    path = folder / NAME
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) if path.exists() else None


@functools.cache
def use(library: ctypes.CDLL | None, llama: ctypes.CDLL) -> bool:
    """Use it from now on if it gives the same bits as the original here; whether it is in use.

    In a worker after the sandbox is closed: ggml takes stock of the processor when it first computes, and AMX is not
    for workers.
    """
    if library is None or not library.attention_exponential_agrees():
        return False
    served = library.attention_served
    served.restype = ctypes.c_long
    library.attention_use(0)
    original = _compute(llama)
    library.attention_use(1)
    same = original == _compute(llama) and served() == 1
    library.attention_use(int(same))
    return same


def _compute(llama: ctypes.CDLL) -> bytes:
    """Attention of a few queries over cells of which each has its own, by llama.cpp, on one thread."""
    chance = random.Random(1)
    ggml = _Ggml(llama)
    query = ggml.tensor(F32, (SIZE, QUERIES, HEADS), _floats(chance, SIZE * QUERIES * HEADS))
    key, value = (ggml.tensor(Q8_0, (SIZE, CELLS, KV_HEADS), _blocks(chance)) for _ in range(2))
    seen = array("H", (chance.choice((0, 0, MASKED)) for _ in range(CELLS * QUERIES)))
    mask = ggml.tensor(F16, (CELLS, QUERIES, 1), seen.tobytes())
    return ggml.attend(query, key, value, mask)


def _floats(chance: random.Random, count: int) -> bytes:
    return array("f", (chance.gauss(0, 3) for _ in range(count))).tobytes()


def _blocks(chance: random.Random) -> bytes:
    """Scales between 2**-7 and 2**-5."""
    return b"".join(
        chance.randrange(0x2000, 0x2800).to_bytes(2, "little") + chance.randbytes(BLOCK)
        for _ in range(SIZE * CELLS * KV_HEADS // BLOCK)
    )


class _Ggml:
    """As much of ggml as computes one node."""

    def __init__(self, llama: ctypes.CDLL) -> None:
        self._llama = llama
        self._context = ctypes.c_void_p(self._call("ggml_init", _Memory(4 << 20, None, False)))

    def _call(self, name: str, *arguments: object) -> Any:
        function: Any = self._llama[name]
        function.restype = ctypes.c_void_p
        return function(*arguments)

    def tensor(self, kind: int, shape: tuple[int, int, int], data: bytes) -> ctypes.c_void_p:
        sides = [ctypes.c_int64(side) for side in shape]
        made = ctypes.c_void_p(self._call("ggml_new_tensor_3d", self._context, kind, *sides))
        ctypes.memmove(self._call("ggml_get_data", made), data, len(data))
        return made

    def attend(self, *tensors: ctypes.c_void_p) -> bytes:
        options = [ctypes.c_float(it) for it in (SIZE**-0.5, 0, 0)]
        node = ctypes.c_void_p(self._call("ggml_flash_attn_ext", self._context, *tensors, *options))
        graph = ctypes.c_void_p(self._call("ggml_new_graph", self._context))
        self._call("ggml_build_forward_expand", graph, node)
        backend = self._one_thread()
        self._call("ggml_backend_graph_compute", backend, graph)
        found = ctypes.string_at(self._call("ggml_get_data", node), 4 * SIZE * HEADS * QUERIES)
        self._call("ggml_backend_free", backend)
        self._call("ggml_free", self._context)
        return found

    def _one_thread(self) -> ctypes.c_void_p:
        """A backend that starts no threads: a worker has none yet, and closes its sandbox around itself alone."""
        device = ctypes.c_void_p(self._call("ggml_backend_dev_by_type", CPU))
        backend = ctypes.c_void_p(self._call("ggml_backend_dev_init", device, None))
        registry = ctypes.c_void_p(self._call("ggml_backend_dev_backend_reg", device))
        address = self._call("ggml_backend_reg_get_proc_address", registry, b"ggml_backend_set_n_threads")
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(address)(backend, 1)
        return backend
