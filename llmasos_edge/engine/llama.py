"""llama.cpp through llama-cpp-python's low-level API: a model, a context, and the traps kept shut; its only import."""

from __future__ import annotations  # array[int] exists for the type checker only

import ctypes
import importlib.util
import re
import sys
import types
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from llmasos_edge.engine import attention
from llmasos_edge.engine.version import VERSION
from llmasos_edge.errors import EngineFailed, Panic

STEP_TOKENS: Final = 512  # n_batch and n_ubatch: the largest step is one ubatch, so an abort undoes all of it
KV_TYPES: Final = {"f16": 1, "q8_0": 8}
SEQUENCES_MAX: Final = 256
LOAD_MODE_NONE: Final = 0  # llama_load_mode


def _import_low_level() -> Any:
    """llama_cpp.llama_cpp without the package's __init__, which costs 22 MB more (numpy, jinja2, diskcache).

    Its version is read from that file's text: importlib.metadata would cost 4 MB.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None or spec.submodule_search_locations is None:
        raise EngineFailed("llama-cpp-python is not installed: run `./run setup`")
    _check_version(Path(spec.origin).read_text())
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    folder = Path(spec.origin).parent / "lib"
    ours = attention.load(folder)
    module: Any = importlib.import_module("llama_cpp.llama_cpp")
    module.attention = ours
    _load_variant(module, folder)
    return module


def _load_variant(module: Any, folder: Path) -> None:
    """A build for many boards has its CPU code in libraries of their own: ggml takes the one that suits this CPU.

    With a folder named, since by default ggml searches the current one too.
    """
    if any(folder.glob("libggml-cpu-*.so")):
        module._lib.ggml_backend_load_all_from_path(ctypes.c_char_p(bytes(folder)))


def _check_version(source: str) -> None:
    found = re.search('^__version__ = "(.*)"$', source, re.MULTILINE)
    if found is None or found[1] != VERSION:
        version = found[1] if found else "of an unknown version"
        raise EngineFailed(f"llama-cpp-python is {version}, and this engine needs {VERSION}: run `./run setup`")


L: Final = _import_low_level()
_log: Final[deque[str]] = deque(maxlen=20)
_buffers: Final[Counter[str]] = Counter()
_BUFFER: Final = re.compile(rb": +(\S+) +(\w+) +buffer size = +([\d.]+) MiB")


@L.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_log(level: int, text: bytes, _data: object) -> None:
    """Warnings and errors, for the message of a failed load (ggml: INFO 2, WARN 3, ERROR 4); and sizes of buffers."""
    if level in (3, 4):
        _log.append(text.decode(errors="replace").strip())
    elif level == 2 and (found := _BUFFER.search(text)):
        _buffers[f"{found[1].decode()} {found[2].decode()}"] += int(float(found[3]) * 2**20)


def buffers() -> dict[str, int]:
    """Bytes of the buffers of the model and context made last, as llama.cpp logs them (to 0.01 MiB), by name.

    Such as "CPU_Mapped model", "CPU_REPACK model", "CPU KV", "CPU compute" and "CPU output".
    """
    return dict(_buffers)


L.llama_log_set(_keep_log, None)


def set_fields(parameters: Any, **fields: object) -> Any:
    """Set fields that exist: ctypes takes any name, and a misspelt or renamed one would do nothing."""
    known = {name for name, *_ in parameters._fields_}
    for name, value in fields.items():
        if name not in known:
            raise Panic(f"set_fields: {type(parameters).__name__} has no field {name}")
        setattr(parameters, name, value)
    return parameters


class LlamaModel:
    """Mapped weights and the vocabulary. Tokenising is thread-safe."""

    def __init__(self, path: Path, *, repack: bool = False, dry: bool = False) -> None:
        """Raises EngineFailed for what llama.cpp refuses; a crafted file may kill the process instead.

        `repack`: copy the weights into a layout that suits this CPU, where there is one. `dry`: have no weights, and
        make contexts that only say how large their buffers would be (with mapped weights llama.cpp would abort).
        """
        L.llama_backend_init()
        self.attention = "shared" if attention.use(L.attention, L._lib) else "llama.cpp"
        _log.clear()
        _buffers.clear()
        parameters = set_fields(L.llama_model_default_params(), use_extra_bufts=repack, no_alloc=dry)
        if dry:
            set_fields(parameters, load_mode=LOAD_MODE_NONE)
        self.pointer = L.llama_model_load_from_file(bytes(path), parameters)
        if not self.pointer:
            raise EngineFailed(f"llama.cpp refuses {path.name}: {'; '.join(_log) or 'no reason given'}")
        self.vocabulary = L.llama_model_get_vocab(self.pointer)
        self.vocabulary_size = int(L.llama_vocab_n_tokens(self.vocabulary))
        template = L.llama_model_chat_template(self.pointer, None)
        self.chat_template: str | None = template.decode() if template else None
        self._piece = ctypes.create_string_buffer(256)

    def tokenize(self, text: str, *, special: bool, begin: bool = False) -> array[int]:
        """`special`: recognise control tokens: never in what a caller wrote. `begin`: add BOS if the model does."""
        raw = text.encode()
        room = len(raw) + 8
        tokens = (ctypes.c_int32 * room)()
        count = L.llama_tokenize(self.vocabulary, raw, len(raw), tokens, room, begin, special)
        if count < 0:
            raise EngineFailed(f"llama_tokenize wants {-count} tokens for {len(raw)} bytes")
        return array("i", tokens[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of a token; control tokens have none. For the compute thread only."""
        size = L.llama_token_to_piece(self.vocabulary, token, self._piece, len(self._piece), 0, False)
        return self._piece.raw[:size] if size > 0 else b""

    def special_text(self, token: int) -> str:
        text = L.llama_vocab_get_text(self.vocabulary, token) if token >= 0 else None
        return text.decode(errors="replace") if text else ""

    def ends(self, token: int) -> bool:
        return bool(L.llama_vocab_is_eog(self.vocabulary, token))

    def close(self) -> None:
        L.llama_model_free(self.pointer)


class LlamaContext:
    """Cells of unified KV state shared by sequences, with flash attention. For one thread."""

    def __init__(self, model: LlamaModel, cells: int, sequences: int, kv: str, threads: int) -> None:
        """Raises EngineFailed if there is no memory for it. `sequences` counts all that will ever be named."""
        if sequences > SEQUENCES_MAX:
            raise EngineFailed(f"{sequences} sequences: llama.cpp has at most {SEQUENCES_MAX}")
        parameters = set_fields(
            L.llama_context_default_params(),
            n_ctx=cells,
            n_batch=STEP_TOKENS,
            n_ubatch=STEP_TOKENS,
            n_seq_max=sequences,
            n_outputs_max=sequences,
            n_threads=threads,
            n_threads_batch=threads,
            type_k=KV_TYPES[kv],
            type_v=KV_TYPES[kv],
            flash_attn_type=1,
            kv_unified=True,
            no_perf=True,
        )
        _log.clear()
        for name in [name for name in _buffers if not name.endswith(" model")]:
            del _buffers[name]
        self.pointer = L.llama_init_from_model(model.pointer, parameters)
        if not self.pointer:
            raise EngineFailed(f"no context of {cells} cells: {'; '.join(_log) or 'no reason given'}")
        self.cells = int(L.llama_n_ctx(self.pointer))
        self._memory = L.llama_get_memory(self.pointer)
        self._batch = L.llama_batch_init(STEP_TOKENS, 0, 1)
        self._threads = threads

    def close(self) -> None:
        L.llama_batch_free(self._batch)
        L.llama_free(self.pointer)

    def abort_on(self, address: int) -> None:
        """A nonzero byte at `address` (and a zero after it) aborts the step within a graph node.

        libc's strlen is the callback: a C function needs no GIL, and is true just when the byte is not 0.
        """
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, L.ggml_abort_callback)
        L.llama_set_abort_callback(self.pointer, strlen, ctypes.c_void_p(address))

    def use_threads(self, threads: int) -> None:
        if threads != self._threads:
            L.llama_set_n_threads(self.pointer, threads, threads)
            self._threads = threads

    def decode(self, entries: Sequence[tuple[int, Sequence[int], int, bool]]) -> int:
        """Compute `(sequence, tokens, first position, logits of the last one)`. Returns 0; 1: no room; 2: aborted.

        1 and 2 change nothing. Logits are found by the index of the token within the batch.
        """
        batch, at = self._batch, 0
        token, position, count, sequence_of, logits = batch.token, batch.pos, batch.n_seq_id, batch.seq_id, batch.logits
        for sequence, tokens, first, output in entries:
            for offset, value in enumerate(tokens):
                token[at], position[at], count[at], logits[at] = value, first + offset, 1, 0
                sequence_of[at][0] = sequence
                at += 1
            logits[at - 1] = output
        batch.n_tokens = at
        status = int(L.llama_decode(self.pointer, batch))
        if status not in (0, 1, 2):
            raise EngineFailed(f"llama_decode: {status} for {at} tokens: {'; '.join(_log)}")
        return status

    def logits(self, index: int) -> Any:
        """The row of logits of a batch position: a pointer to one float a token of the vocabulary."""
        return L.llama_get_logits_ith(self.pointer, index)

    def remove(self, sequence: int, start: int = 0) -> None:
        """Positions from `start` on."""
        L.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def copy(self, source: int, target: int, start: int = 0, end: int = -1) -> None:
        """Share the cells of positions [start, end) of `source`: metadata only."""
        L.llama_memory_seq_cp(self._memory, source, target, start, end)

    def length(self, sequence: int) -> int:
        """Positions computed."""
        return int(L.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def clear(self) -> None:
        L.llama_memory_clear(self._memory, False)

    def state_size(self, sequence: int) -> int:
        return int(L.llama_state_seq_get_size(self.pointer, sequence))

    def save(self, sequence: int, address: int, room: int) -> int:
        """Copy a sequence's state to memory; the bytes used, 0 if it does not fit."""
        if self.state_size(sequence) > room:
            return 0
        target = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
        return int(L.llama_state_seq_get_data(self.pointer, target, room, sequence))

    def restore(self, sequence: int, address: int, size: int) -> bool:
        """The reverse. It deletes the sequence first, even if it then fails."""
        source = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
        return bool(L.llama_state_seq_set_data(self.pointer, source, size, sequence))
