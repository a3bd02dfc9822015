"""What a model takes, region by region: arithmetic over its header, llama.cpp's dry run, and what loads have measured.

Exact are the file, repacked weights and KV. The context's buffers are the dry run's, and until there was one an upper
bound; what a process takes beside them is a figure of ours until the model's own is measured (docs/adr/0021).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmasos_edge.engine.gguf import GgufHeader, KvType
from llmasos_edge.engine.version import VERSION
from llmasos_edge.kernel.memory.budget import Region
from llmasos_edge.kernel.units import Bytes
from llmasos_edge.services.monitor import WorkerMemory
from llmasos_edge.services.store import MemoryNotes

MIB: Final = 1 << 20
STEP_TOKENS: Final = 512
PROCESS_BYTES: Final = 15 * MIB  # a worker before its model: interpreter and modules, its page tables
VOCABULARY_BYTES: Final = 384  # a token of the vocabulary
SERVING_BYTES: Final = 6 * MIB  # what tasks add: 4 MiB were measured after 320 of them
GRAPH_BYTES: Final = 2 * MIB  # a context beside its buffers
OWN_SEQUENCES: Final = 18  # beside the kernel's, in a worker's context: each has room for a row of logits
STEP_ACTIVATIONS: Final = 32  # bytes for each element of a step's activations, at most
MASK_BYTES: Final = 1088  # of a step's attention mask, a cell
PACKED_SHARE: Final = 4  # at most this part of the pool is held aside while it is packed
CPU_TYPES: Final[Mapping[str, Collection[int]]] = {  # tensor types with another layout, by what a CPU can do
    "avx2": (2, 12, 20, 39),
    "avx512f": (10,),
    "asimddp": (2, 8, 12, 13, 14, 20, 39),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What the sizes depend on, beside the file."""

    kv: KvType
    cells: int
    sequences: int
    exact: bool
    repacked: bool = False

    @property
    def key(self) -> str:
        """Of a dry run: what its result depends on."""
        return f"{VERSION} {self.kv} {self.cells} {self.sequences}"


def footprint(model: str, header: GgufHeader, shape: Shape, notes: MemoryNotes, repacked: Bytes) -> tuple[Region, ...]:
    """`repacked`: bytes of the weights' copies."""
    kv = header.kv_bytes(shape.cells, shape.kv)
    scratch = kv if shape.exact else kv // PACKED_SHARE
    sizes = {
        ("weights", "weights"): header.file_size,
        ("repacked", "weights"): repacked,
        ("kv", "kv"): kv,
        ("scratch", "kv"): scratch,  # states held aside while the pool is packed or made anew
        ("compute", "compute"): _compute(header, shape, notes),
        ("runtime", "runtime"): _runtime(header, notes) + notes.excess,
    }
    return tuple(Region(f"{model}.{name}", kind, Bytes(size)) for (name, kind), size in sizes.items() if size)


def told(details: Mapping[str, object]) -> dict[str, int]:
    """What a worker measured itself while it loaded."""
    found = details.get("memory")
    return found if isinstance(found, dict) else {}


def repacked(regions: Collection[Region]) -> bool:
    return any(region.name.endswith(".repacked") for region in regions)


def measured(regions: Collection[Region], loading: Mapping[str, int], memory: WorkerMemory) -> dict[str, int]:
    """A live worker's bytes by region.

    KV is resident from the beginning. What else is anonymous is the buffers' as far as they are charged, then of the
    runtime, and then must be states held aside.
    """
    charged = {region.name.rpartition(".")[2]: region for region in regions}
    found = {"weights": memory.weights, "repacked": loading.get("repacked", 0)}
    found["kv"] = charged["kv"].bytes if "kv" in charged else 0
    found["runtime"] = loading.get("runtime", 0)
    rest = max(0, memory.private - found["repacked"] - found["kv"] - found["runtime"])
    found["compute"] = min(rest, charged["compute"].bytes if "compute" in charged else 0)
    rest -= found["compute"]
    serving = min(rest, max(0, charged["runtime"].bytes - found["runtime"]) if "runtime" in charged else rest)
    found["runtime"] += serving
    found["scratch"] = rest - serving
    return {region.name: found[name] for name, region in charged.items()}


def steady(regions: Collection[Region]) -> int:
    """Bytes charged for what is there all the time: all but the room for states held aside."""
    return sum(region.bytes for region in regions if not region.name.endswith(".scratch"))


def types_repacked(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[int]:
    """The tensor types that llama.cpp has another layout for on this CPU (ggml-cpu/repack.cpp)."""
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        return frozenset()
    return frozenset(kind for feature, kinds in CPU_TYPES.items() if feature in words for kind in kinds)


def _compute(header: GgufHeader, shape: Shape, notes: MemoryNotes) -> int:
    """A context's buffers: as the dry run had them, or an upper bound."""
    dry = notes.dry_runs.get(shape.key)
    if dry is not None and dry.get("compute"):
        return dry["compute"] + dry["output"] + GRAPH_BYTES
    logits = (shape.sequences + OWN_SEQUENCES) * header.vocab_size * 4
    activations = STEP_TOKENS * header.embedding_length * STEP_ACTIVATIONS
    return 2 * logits + activations + shape.cells * MASK_BYTES + GRAPH_BYTES


def _runtime(header: GgufHeader, notes: MemoryNotes) -> int:
    return notes.runtime.get(VERSION, process(header)) + SERVING_BYTES


def process(header: GgufHeader) -> Bytes:
    """A process with the vocabulary: a worker without its weights and context, or a dry run."""
    return Bytes(PROCESS_BYTES + header.vocab_size * VOCABULARY_BYTES)
