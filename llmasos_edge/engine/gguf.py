"""A bounded reader of GGUF headers: what the kernel must know of a model before a worker touches it.

The format is in ggml's docs/gguf.md. A file is untrusted: every count is held against a limit and against the bytes
left in the file, nothing is read that is not needed, and what the engine would die of is refused here by name.
"""

import math
import os
import struct
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal

from llmasos_edge.errors import StoreError

KvType = Literal["q8_0", "f16"]
Array = tuple[int, tuple[int, ...] | None]  # its length, and its values where they are few and whole numbers
Value = int | float | str | Array

MAX_HEADER: Final = 64 * 2**20  # bytes before the tensor data
MAX_ENTRIES: Final = 2**16  # key-value pairs, and tensors
MAX_NAME: Final = 2**16
MAX_ARRAY: Final = 2**22
KEPT_ARRAY: Final = 512  # longest array whose values are kept: one for each layer
MAX_LAYERS: Final = 512  # llama.cpp's own limit
MAX_WIDTH: Final = 2**20  # heads, embedding and row lengths

STRING: Final = 8
ARRAY: Final = 9
SCALARS: Final = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<B"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
FLOATS: Final = (6, 12)
U32: Final = SCALARS[4]
U64: Final = SCALARS[10]

# ggml's tensor types: values in a block, bytes of a block
# fmt: off
BLOCKS: Final = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18), 42: (64, 18),
}
# fmt: on
REPACKED_ROWS: Final = 8  # repacked weights interleave so many
KV_BLOCKS: Final[dict[KvType, tuple[int, int]]] = {"q8_0": (32, 34), "f16": (1, 2)}


@dataclass(frozen=True)
class GgufHeader:
    """A model's shape. Lengths are in values, sizes in bytes; `head_count_kv` has one entry for each layer.

    `matrices` are the bytes of the weights that llama.cpp could keep in another layout, by tensor type.
    """

    architecture: str
    block_count: int
    head_count: int
    head_count_kv: tuple[int, ...]
    embedding_length: int
    key_length: int
    value_length: int
    context_length: int
    vocab_size: int
    has_chat_template: bool
    tensor_bytes: int
    matrices: Mapping[int, int]
    file_size: int

    @property
    def shape(self) -> tuple[str | int, ...]:
        """The same for all quantizations of one model."""
        return self.architecture, self.block_count, self.embedding_length, self.head_count, self.vocab_size

    def repacked_bytes(self, types: Collection[int]) -> int:
        """What the copies of the weights take if tensors of these types are repacked."""
        return sum(size for kind, size in self.matrices.items() if kind in types)

    def kv_bytes(self, cells: int, kv_type: KvType) -> int:
        """Bytes of a context's KV cache: for each of its cells and each layer a row of keys and one of values."""
        values, size = KV_BLOCKS[kv_type]
        lengths = (self.key_length, self.value_length)
        rows = (-(-heads * length // values) * size for heads in self.head_count_kv for length in lengths)
        return cells * sum(rows)


def read_header(path: Path) -> GgufHeader:
    """The header of the GGUF file at `path`; StoreError says why a file is not one, or not whole."""
    try:
        with path.open("rb") as file:
            return _Reader(file, path.name).header()
    except OSError as error:
        raise StoreError(f"{path}: can't be read: {error.strerror}") from error


class _Reader:
    """One pass over a file's header; `left` counts the bytes that may still be read."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._size = os.fstat(file.fileno()).st_size
        self._left = min(self._size, MAX_HEADER)

    def header(self) -> GgufHeader:
        if self._take(4) != b"GGUF":
            raise self._refused("it does not begin with GGUF")
        if (version := self._number(U32)) not in (2, 3):
            raise self._refused(f"version {version} is not known (2 and 3 are)")
        tensors = self._count("tensors", MAX_ENTRIES)
        values = self._values(self._count("keys", MAX_ENTRIES))
        return self._shape(values, self._tensors(tensors, self._alignment(values)))

    def _refused(self, why: str) -> StoreError:
        return StoreError(f"{self._name} is not a GGUF model that can be used: {why}")

    def _take(self, length: int) -> bytes:
        self._spend(length)
        data = self._file.read(length)
        if len(data) != length:
            raise self._refused("the file ends inside the header")
        return data

    def _skip(self, length: int) -> None:
        self._spend(length)
        self._file.seek(length, os.SEEK_CUR)

    def _spend(self, length: int) -> None:
        if length > self._left:
            raise self._refused("the file ends inside the header, or the header is far too long")
        self._left -= length

    def _number(self, kind: struct.Struct) -> int:
        return int(kind.unpack(self._take(kind.size))[0])

    def _count(self, what: str, limit: int) -> int:
        count = self._number(U64)
        if count > limit:
            raise self._refused(f"it claims {count} {what}, more than {limit}")
        return count

    def _text(self) -> str:
        data = self._take(self._count("bytes of a name", MAX_NAME))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self._refused("a name is not UTF-8") from None

    def _values(self, count: int) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for _ in range(count):
            key = self._text()
            if key in values:
                raise self._refused(f"{key} is there twice")
            values[key] = self._value(key, self._number(U32))
        return values

    def _value(self, key: str, kind: int) -> Value:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._array(self._number(U32))
        if kind not in SCALARS:
            raise self._refused(f"{key} has the unknown type {kind}")
        scalar = SCALARS[kind]
        value: int | float = scalar.unpack(self._take(scalar.size))[0]
        if not math.isfinite(value):
            raise self._refused(f"{key} is {value}")
        return value

    def _string(self) -> str:
        """A string value: only short ones are kept, of longer ones (chat templates) a mark that they are there."""
        length = self._number(U64)
        if length <= KEPT_ARRAY:
            return self._take(length).decode(errors="replace")
        self._skip(length)
        return "…"

    def _array(self, kind: int) -> Array:
        count = self._count("items of an array", MAX_ARRAY)
        if kind == STRING:
            for _ in range(count):
                self._skip(self._number(U64))
            return count, None
        if kind not in SCALARS:
            raise self._refused(f"an array holds the unknown type {kind}")
        scalar = SCALARS[kind]
        if count > KEPT_ARRAY or kind in FLOATS:
            self._skip(count * scalar.size)
            return count, None
        return count, tuple(item for (item,) in scalar.iter_unpack(self._take(count * scalar.size)))

    def _alignment(self, values: dict[str, Value]) -> int:
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= MAX_NAME or alignment & (alignment - 1):
            raise self._refused("general.alignment is not a power of two")
        return alignment

    def _tensors(self, count: int, alignment: int) -> tuple[int, dict[int, int]]:
        """Reads the tensors' places; returns their bytes, and `matrices`. The last must end inside the file."""
        total = end = 0
        matrices, embedding, output = Counter[int](), Counter[int](), False
        for _ in range(count):
            name = self._text()
            dimensions = self._dimensions(name)
            kind = self._kind(name)
            block, size = BLOCKS[kind]
            offset = self._number(U64)
            length = -(-math.prod(dimensions) // block) * size
            total += length
            end = max(end, offset + length)
            output |= name == "output.weight"
            if len(dimensions) > 1 and dimensions[1] % REPACKED_ROWS == 0:
                (embedding if name == "token_embd.weight" else matrices)[kind] += length
        start = -(-self._file.tell() // alignment) * alignment
        if count and start + end > self._size:
            raise self._refused(f"it is truncated: its tensors need {start + end} bytes, the file has {self._size}")
        return total, dict(matrices if output else matrices + embedding)  # else the embedding is the output as well

    def _dimensions(self, name: str) -> list[int]:
        count = self._number(U32)
        if count > 4:
            raise self._refused(f"tensor {name} has {count} dimensions")
        return [self._number(U64) for _ in range(count)]

    def _kind(self, name: str) -> int:
        kind = self._number(U32)
        if kind not in BLOCKS:
            raise self._refused(f"tensor {name} has the unknown type {kind}")
        return kind

    def _shape(self, values: dict[str, Value], tensors: tuple[int, dict[int, int]]) -> GgufHeader:
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str):
            raise self._refused("it has no general.architecture")
        number = _Numbers(architecture, values, self._refused)
        layers = number("block_count", MAX_LAYERS)
        heads = number("attention.head_count", MAX_WIDTH)
        width = number("embedding_length", MAX_WIDTH)
        return GgufHeader(
            architecture=architecture,
            block_count=layers,
            head_count=heads,
            head_count_kv=number.for_each_layer("attention.head_count_kv", layers, heads),
            embedding_length=width,
            key_length=number("attention.key_length", MAX_WIDTH, width // heads),
            value_length=number("attention.value_length", MAX_WIDTH, width // heads),
            context_length=number("context_length", 2**31 - 1),
            vocab_size=number("vocab_size", MAX_ARRAY, _length(values.get("tokenizer.ggml.tokens"))),
            has_chat_template="tokenizer.chat_template" in values,
            tensor_bytes=tensors[0],
            matrices=tensors[1],
            file_size=self._size,
        )


class _Numbers:
    """The numbers under an architecture's prefix, each between 1 and a limit."""

    def __init__(self, architecture: str, values: dict[str, Value], refused: Callable[[str], StoreError]) -> None:
        self._prefix = architecture
        self._values = values
        self._refused = refused

    def __call__(self, key: str, limit: int, default: int | None = None) -> int:
        value = self._values.get(f"{self._prefix}.{key}", default)
        if isinstance(value, tuple) and value[1]:  # given for each layer: the greatest is what memory must hold
            value = max(value[1])
        if not isinstance(value, int) or not 1 <= value <= limit:
            raise self._refused(f"{self._prefix}.{key} is {value}, and must be between 1 and {limit}")
        return value

    def for_each_layer(self, key: str, layers: int, default: int) -> tuple[int, ...]:
        value = self._values.get(f"{self._prefix}.{key}", default)
        if not isinstance(value, tuple):
            return (self(key, MAX_WIDTH, default),) * layers
        items = value[1]
        if items is None or len(items) != layers or not all(0 <= item <= MAX_WIDTH for item in items):
            raise self._refused(f"{self._prefix}.{key} does not have one number for each of {layers} layers")
        return items


def _length(value: Value | None) -> int | None:
    return value[0] if isinstance(value, tuple) else None
