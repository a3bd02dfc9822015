"""Tests of the GGUF header reader: shapes, arithmetic, truncation, and thousands of broken headers."""

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos_edge.engine.gguf import GgufHeader, read_header
from llmasos_edge.errors import StoreError

Field = tuple[int, object]  # a GGUF type, and a value; for arrays (the items' type, the items)

FIELDS: dict[str, Field] = {
    "general.architecture": (8, "llama"),
    "llama.block_count": (4, 2),
    "llama.attention.head_count": (4, 4),
    "llama.attention.head_count_kv": (4, 2),
    "llama.embedding_length": (4, 128),
    "llama.context_length": (4, 512),
    "llama.attention.layer_norm_rms_epsilon": (6, 1e-5),
    "tokenizer.ggml.tokens": (9, (8, ["a", "b", "c"])),
    "tokenizer.ggml.scores": (9, (6, [0.5, float("nan"), 1.0])),
    "tokenizer.chat_template": (8, "{{ messages }}" * 100),
}
FORMATS = {0: "B", 4: "I", 5: "i", 6: "f", 10: "Q"}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def encoded(kind: int, value: object) -> bytes:
    if kind == 8:
        return text(str(value))
    if kind == 9 and isinstance(value, tuple):
        item, items = value
        return struct.pack("<IQ", item, len(items)) + b"".join(encoded(item, each) for each in items)
    return struct.pack(f"<{FORMATS[kind]}", value)


def gguf(
    changes: dict[str, Field | None] | None = None, version: int = 3, tensor_type: int = 8, data: int = 160
) -> bytes:
    """A small model: one tensor of 4 rows of 32 values (q8_0: 136 bytes), then `data` bytes."""
    fields = {key: field for key, field in (FIELDS | (changes or {})).items() if field is not None}
    header = b"GGUF" + struct.pack("<IQQ", version, 1, len(fields))
    header += b"".join(
        text(key) + struct.pack("<I", kind) + encoded(kind, value) for key, (kind, value) in fields.items()
    )
    header += text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 4, tensor_type, 0)
    return header + bytes(-len(header) % 32) + bytes(data)


def read(tmp_path: Path, content: bytes) -> GgufHeader:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(content)
    return read_header(path)


@pytest.mark.parametrize("version", [2, 3])
def test_shape(tmp_path: Path, version: int) -> None:
    """Every number of the shape is read, from the keys or from their defaults."""
    content = gguf(version=version)
    assert read(tmp_path, content) == GgufHeader(
        architecture="llama",
        block_count=2,
        head_count=4,
        head_count_kv=(2, 2),
        embedding_length=128,
        key_length=32,
        value_length=32,
        context_length=512,
        vocab_size=3,
        has_chat_template=True,
        tensor_bytes=136,
        matrices={},
        file_size=len(content),
    )


def test_kv_bytes(tmp_path: Path) -> None:
    """KV size is layers times cells times a row of keys and one of values: 34 bytes for 32 values, or 2 bytes each."""
    header = read(tmp_path, gguf())
    assert header.kv_bytes(cells=10, kv_type="q8_0") == 10 * 2 * (2 * 32 // 32 * 34) * 2
    assert header.kv_bytes(cells=10, kv_type="f16") == 10 * 2 * (2 * 32 * 2) * 2


def test_heads_for_each_layer(tmp_path: Path) -> None:
    """Layers may have different numbers of KV heads, and key and value lengths of their own."""
    header = read(
        tmp_path,
        gguf(
            {
                "llama.attention.head_count_kv": (9, (5, [1, 3])),
                "llama.attention.key_length": (4, 64),
                "llama.attention.value_length": (4, 32),
            }
        ),
    )
    assert header.head_count_kv == (1, 3)
    assert header.kv_bytes(cells=1, kv_type="f16") == (1 + 3) * (64 + 32) * 2


def test_heads_default_to_all(tmp_path: Path) -> None:
    """Without a number of KV heads every head has its own."""
    assert read(tmp_path, gguf({"llama.attention.head_count_kv": None})).head_count_kv == (4, 4)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "ends inside"),
        (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "keys"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "bytes of a name"),
        (gguf(data=100), "truncated"),
        (gguf(tensor_type=99), "unknown type 99"),
        (gguf({"llama.block_count": (4, 2**31)}), "block_count is 2147483648"),
        (gguf({"llama.block_count": None}), "block_count is None"),
        (gguf({"llama.attention.head_count": (4, 0)}), "head_count is 0"),
        (gguf({"llama.attention.head_count": (8, "four")}), "head_count is four"),
        (gguf({"llama.attention.head_count_kv": (9, (5, [1, 2, 3]))}), "each of 2 layers"),
        (gguf({"llama.attention.layer_norm_rms_epsilon": (6, float("nan"))}), "epsilon is nan"),
        (gguf({"general.architecture": None}), "general.architecture"),
        (gguf({"general.alignment": (4, 3)}), "power of two"),
        (gguf({"deep": (9, (9, []))}), "unknown type 9"),
        (gguf().replace(b"llama.block_count", b"llama.block_c\xff\xff\xff\xff"), "not UTF-8"),
        (gguf().replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.scores"), "twice"),
    ],
)
def test_refusals(tmp_path: Path, content: bytes, named: str) -> None:
    """What is not a GGUF model, or would kill the engine, is refused with the reason."""
    with pytest.raises(StoreError, match=f"tiny.gguf is not a GGUF model.*{named}"):
        read(tmp_path, content)


def test_a_huge_array_of_nothing(tmp_path: Path) -> None:
    """A count that the file can't hold ends at the end of the file, not at the count."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("list") + struct.pack("<IIQ", 9, 8, 2**22)
    with pytest.raises(StoreError, match="the file ends"):
        read(tmp_path, header + bytes(80))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A missing file is a StoreError with its path."""
    with pytest.raises(StoreError, match=r"absent\.gguf"):
        read_header(tmp_path / "absent.gguf")


VALID = gguf()


@settings(max_examples=1500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=8)), max_size=4),
    length=st.integers(0, len(VALID)),
)
def test_mutations(tmp_path: Path, changes: list[tuple[int, bytes]], length: int) -> None:
    """Any damage to a valid file is read as some bounded shape, or refused by name: never another error."""
    content = bytearray(VALID)
    for place, piece in changes:
        content[place : place + len(piece)] = piece
    try:
        header = read(tmp_path, bytes(content[: length or None]))
    except StoreError:
        return
    assert 1 <= header.block_count == len(header.head_count_kv) <= 512
    assert header.kv_bytes(cells=1, kv_type="q8_0") > 0


@given(content=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes(tmp_path: Path, content: bytes) -> None:
    """Random bytes behind a right beginning are refused."""
    with pytest.raises(StoreError):
        read(tmp_path, b"GGUF\x03\x00\x00\x00" + content)


@pytest.mark.parametrize("length", range(1, len(VALID) - 24, 7))
def test_truncation_anywhere(tmp_path: Path, length: int) -> None:
    """A file cut off at any place is refused."""
    with pytest.raises(StoreError):
        read(tmp_path, VALID[:length])


def test_what_repacking_takes(quantizations: dict[str, Path]) -> None:
    """As many bytes as llama.cpp was seen to take for Q4_0 and Q4_K (types 2 and 12); other types count for nothing.

    An embedding that is the output too is copied as well: then Q8_0 (type 8) would be all matrices.
    """
    taken = {kind: read_header(path).repacked_bytes({2, 12}) / 2**20 for kind, path in quantizations.items()}
    assert taken == {
        kind: pytest.approx(size, abs=0.01) for kind, size in {"Q4_0": 56.95, "Q8_0": 0, "Q4_K_M": 7.59}.items()
    }
    assert (
        read_header(quantizations["Q8_0"]).repacked_bytes({8}) > 0.99 * read_header(quantizations["Q8_0"]).tensor_bytes
    )
