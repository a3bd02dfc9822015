"""What the engine's tests share: a 3-layer cut of the default model, which computes a step in milliseconds."""

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmasos_edge.engine.kv_pool import KvPool
from llmasos_edge.engine.llama import L, LlamaModel, set_fields
from llmasos_edge.engine.protocol import Load
from llmasos_edge.kernel.memory.extent import CONTROL_PAGE
from llmasos_edge.kernel.units import ModelId
from tests.quantized import quantized

LAYERS, KEPT = 30, 3
ARENA = 32 << 20
MakePool = Callable[..., KvPool]


def cut_model(path: Path) -> Path:
    """SmolLM2-135M's first layers, from where `./run` has put it: vocabulary and template, nonsense for answers."""
    source = Path(os.environ["LLMASOS_MODELS"]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    pruned = (ctypes.c_int32 * (LAYERS - KEPT + 1))(*range(KEPT, LAYERS), -1)
    parameters = set_fields(
        L.llama_model_quantize_default_params(),
        only_copy=True,
        prune_layers=ctypes.cast(pruned, ctypes.POINTER(ctypes.c_int32)),
    )
    assert L.llama_model_quantize(bytes(source), bytes(path), ctypes.byref(parameters)) == 0
    return path


@pytest.fixture(scope="session")
def quantizations() -> dict[str, Path]:
    """The default model as other quantizations, by kind."""
    source = Path(os.environ["LLMASOS_MODELS"]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return {kind: quantized(source, Path(".state/cache/models"), kind) for kind in ("Q4_0", "Q8_0", "Q4_K_M")}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 3-layer model's file."""
    return cut_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def model(tiny: Path) -> Iterator[LlamaModel]:
    """The cut; not for the whole session, which would keep it mapped."""
    model = LlamaModel(tiny)
    yield model
    model.close()


@pytest.fixture
def make_pool(model: LlamaModel, tiny: Path) -> Iterator[MakePool]:
    """Makes KV pools whose arena is a memfd, as a worker has them."""
    memfd = os.memfd_create("arena")
    os.ftruncate(memfd, CONTROL_PAGE + ARENA)
    arena = mmap.mmap(memfd, CONTROL_PAGE + ARENA)
    pools: list[KvPool] = []

    def make(cells: int = 1024, *, sequences: int = 4, exact: bool = False, kv: str = "q8_0") -> KvPool:
        load = Load(ModelId("tiny"), str(tiny), cells, cells, sequences, kv, exact, 1)
        pools.append(KvPool(model, load, arena))
        return pools[-1]

    yield make
    for pool in pools:
        pool.context.close()
    arena.close()
    os.close(memfd)
