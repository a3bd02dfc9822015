"""Tests of llama.cpp behind its door: each trap that killed or misled during the trials."""

import ctypes
import mmap
import subprocess
import sys
import threading
import time
import types
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmasos_edge.engine.llama import L, LlamaContext, LlamaModel, _check_version, _load_variant, set_fields
from llmasos_edge.engine.version import VERSION
from llmasos_edge.errors import EngineFailed, Panic

MakeContext = Callable[..., LlamaContext]
PROMPT = array("i", range(2000, 2060))


@pytest.fixture
def make_context(model: LlamaModel) -> Iterator[MakeContext]:
    contexts: list[LlamaContext] = []

    def make(cells: int = 512, sequences: int = 4, kv: str = "q8_0") -> LlamaContext:
        contexts.append(LlamaContext(model, cells, sequences, kv, 1))
        return contexts[-1]

    yield make
    for context in contexts:
        context.close()


def logits(context: LlamaContext, model: LlamaModel, index: int) -> bytes:
    return ctypes.string_at(L.llama_get_logits_ith(context.pointer, index), model.vocabulary_size * 4)


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


def test_unknown_fields_of_structures_are_refused() -> None:
    """ctypes would take any name and do nothing: `use_mmap` and `flash_attn` are gone, for one."""
    for gone in ("use_mmap", "flash_attn"):
        with pytest.raises(Panic, match=f"no field {gone}"):
            set_fields(L.llama_model_default_params(), **{gone: True})


def test_importing_it_does_not_pull_in_the_whole_package() -> None:
    """A worker's memory: numpy and diskcache would cost 22 MB."""
    code = (
        "import llmasos_edge.engine.worker, sys\n"
        "print([name for name in ('numpy', 'diskcache', 'jsonschema') if name in sys.modules])"
    )
    assert run_python(code).stdout.strip() == "[]"


def test_control_tokens_are_recognised_only_where_asked(model: LlamaModel) -> None:
    """A caller's `<|im_start|>` is ordinary text, and a control token has no text."""
    (control,) = model.tokenize("<|im_start|>", special=True)
    ordinary = model.tokenize("<|im_start|>", special=False)
    assert control not in ordinary
    assert b"".join(map(model.piece, ordinary)) == b"<|im_start|>"
    assert model.piece(control) == b""
    assert model.special_text(control) == "<|im_start|>"


@pytest.mark.parametrize("text", ["", "Grüße, 😀!\n\tende", "a\x00b", "x" * 5000])
def test_text_survives_tokens(model: LlamaModel, text: str) -> None:
    """Pieces joined are the text again, whatever it is."""
    assert b"".join(map(model.piece, model.tokenize(text, special=False))) == text.encode()


@pytest.mark.parametrize("damage", ["truncated", "garbage", "header only", "empty"])
def test_broken_model_files_are_refused(tiny: Path, tmp_path: Path, damage: str) -> None:
    """What llama.cpp can't load is an error with its reason; the process lives."""
    path = tmp_path / "broken.gguf"
    whole = tiny.read_bytes()
    path.write_bytes(
        {"truncated": whole[: len(whole) // 2], "garbage": bytes(range(256)) * 99, "empty": b""}.get(damage, whole[:64])
    )
    with pytest.raises(EngineFailed, match="llama.cpp refuses broken.gguf: ."):
        LlamaModel(path)


def test_more_sequences_than_llama_cpp_knows_are_refused(model: LlamaModel) -> None:
    """A sequence id of 256 or more would kill the process."""
    with pytest.raises(EngineFailed, match="at most 256"):
        LlamaContext(model, 512, 257, "q8_0", 1)


def test_a_full_pool_is_a_status_and_changes_nothing(make_context: MakeContext, model: LlamaModel) -> None:
    """Status 1 is atomic: when there is room again, the same step gives the same bits."""
    context, fresh = make_context(256), make_context(256)
    assert context.decode([(1, range(3000, 3200), 0, False)]) == 0
    assert context.decode([(0, PROMPT, 0, True)]) == 1
    assert context.length(0) == 0
    context.remove(1)
    assert context.decode([(0, PROMPT, 0, True)]) == fresh.decode([(0, PROMPT, 0, True)]) == 0
    assert logits(context, model, len(PROMPT) - 1) == logits(fresh, model, len(PROMPT) - 1)


def test_a_bad_batch_is_an_error(make_context: MakeContext) -> None:
    """Positions must go on without gaps."""
    context = make_context()
    context.decode([(0, PROMPT, 0, False)])
    with pytest.raises(EngineFailed, match="llama_decode: -1"):
        context.decode([(0, [1], len(PROMPT) + 5, True)])


def test_the_abort_byte_stops_a_step_and_changes_nothing(make_context: MakeContext, model: LlamaModel) -> None:
    """The byte ends a step without the GIL; the step computed again has the bits of an undisturbed one."""
    context = make_context()
    control = mmap.mmap(-1, 4096)
    context.abort_on(ctypes.addressof(ctypes.c_char.from_buffer(control)))
    whole = array("i", range(4000, 4300))
    started = time.perf_counter()
    assert context.decode([(0, whole, 0, True)]) == 0
    undisturbed = time.perf_counter() - started
    expected = logits(context, model, len(whole) - 1)
    context.remove(0)
    delay = undisturbed / 10
    timer = threading.Timer(delay, control.__setitem__, (0, 1))
    timer.start()
    started = time.perf_counter()
    assert context.decode([(0, whole, 0, True)]) == 2
    assert time.perf_counter() - started < undisturbed
    timer.join()
    assert context.length(0) == 0
    control[0] = 0
    assert context.decode([(0, whole, 0, True)]) == 0
    assert logits(context, model, len(whole) - 1) == expected


def test_restored_q8_0_state_is_bit_exact(make_context: MakeContext, model: LlamaModel) -> None:
    """Into other cells, another sequence and another context size, and in another batch mix."""
    context, other = make_context(512), make_context(1024)
    context.decode([(0, PROMPT, 0, False)])
    room = ctypes.create_string_buffer(context.state_size(0))
    address = ctypes.addressof(room)
    assert context.save(0, address, len(room) - 1) == 0
    assert context.save(0, address, len(room)) == len(room)
    other.decode([(1, range(5000, 5100), 0, False)])
    assert other.restore(3, address, len(room))
    context.decode([(0, [77], len(PROMPT), True)])
    other.decode([(1, [55], 100, True), (3, [77], len(PROMPT), True)])
    assert logits(context, model, 0) == logits(other, model, 1)


def test_a_state_of_another_shape_is_refused(make_context: MakeContext) -> None:
    """An f16 state does not go into a q8_0 context; nor does one whose header is broken."""
    context, other = make_context(), make_context(kv="f16")
    other.decode([(0, PROMPT, 0, False)])
    room = ctypes.create_string_buffer(other.state_size(0))
    other.save(0, ctypes.addressof(room), len(room))
    assert not context.restore(0, ctypes.addressof(room), len(room))
    assert not context.restore(0, ctypes.addressof(ctypes.create_string_buffer(4096)), 4096)
    assert context.decode([(0, PROMPT, 0, True)]) == 0


def test_a_row_without_logits_is_null(make_context: MakeContext) -> None:
    """Sampling it would kill the process, so rows are asked for where they will be sampled."""
    context = make_context()
    context.decode([(0, PROMPT, 0, True)])
    assert not L.llama_get_logits_ith(context.pointer, 0)
    assert L.llama_get_logits_ith(context.pointer, len(PROMPT) - 1)


@pytest.mark.parametrize("source", ['__version__ = "0.3.35"\n', "no version\n", f'x\n__version__ = "{VERSION}.1"\n'])
def test_another_version_is_refused(source: str) -> None:
    """Its structures would be read wrongly: the message says which one is needed."""
    with pytest.raises(EngineFailed, match=f"needs {VERSION}"):
        _check_version(source)


def test_this_version_is_taken() -> None:
    """Where the line stands in the file does not matter."""
    _check_version(f'from .llama import *\n\n__version__ = "{VERSION}"\n')


def test_a_build_for_many_boards_loads_its_own_variant(tmp_path: Path) -> None:
    """ggml is told the folder of the libraries, once, and only where there are variants to choose from."""
    told: list[bytes] = []
    library = types.SimpleNamespace(ggml_backend_load_all_from_path=lambda path: told.append(path.value))
    module = types.SimpleNamespace(_lib=library)
    _load_variant(module, tmp_path)
    assert told == []
    (tmp_path / "libggml-cpu-armv8.0_1.so").touch()
    _load_variant(module, tmp_path)
    assert told == [bytes(tmp_path)]
