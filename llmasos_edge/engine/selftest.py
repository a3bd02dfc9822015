"""The self-test of a model on this processor: are parked, batched and undisturbed computations the same, bit for bit?

`python -m llmasos_edge.engine.selftest FILE KV` prints the result as JSON: a bad file may kill its process.
"""

from __future__ import annotations  # array[int] exists for the type checker only

import ctypes
import json
import os
import re
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from llmasos_edge.engine.llama import L, LlamaContext, LlamaModel
from llmasos_edge.errors import EngineFailed

PROMPT: Final = "An operating system shares one processor among many tasks. It parks one and goes on with another. " * 2
STEPS: Final = 16  # tokens after the prompt, half of them before the task is parked
CHUNK: Final = 16
SEQUENCES: Final = 4


def self_test(path: Path, kv: str) -> dict[str, str | int]:
    """How many rows of logits differ after a park and a restore, and in a batch. EngineFailed if it can't run."""
    model = LlamaModel(path)
    prompt = model.tokenize(PROMPT, special=False)
    threads = len(os.sched_getaffinity(0))

    def context(cells: int) -> LlamaContext:
        return LlamaContext(model, cells, SEQUENCES, kv, threads)

    rows, tokens = _undisturbed(context(256), model, prompt)
    parked = sum(a != b for a, b in zip(rows, _parked(context(512), model, prompt, tokens), strict=True))
    batched = sum(a != b for a, b in zip(rows, _batched(context(512), model, prompt, tokens), strict=True))
    model.close()
    found: dict[str, str | int] = {"deterministic": "approximate" if parked or batched else "yes"}
    return (
        found
        | {"rows": STEPS, "parked": parked, "batched": batched, "library": _library(), "kv": kv}
        | {"attention": model.attention}
    )


def _undisturbed(context: LlamaContext, model: LlamaModel, prompt: array[int]) -> tuple[list[bytes], list[int]]:
    """The rows of logits that a task alone gets, and the most likely token of each."""
    rows, tokens = [], []
    _decode(context, (0, prompt, 0, True))
    for step in range(STEPS):
        rows.append(_row(context, model))
        values = array("f", rows[-1])
        tokens.append(max(range(len(values)), key=values.__getitem__))
        _decode(context, (0, tokens[-1:], len(prompt) + step, True))
    context.close()
    return rows, tokens


def _parked(context: LlamaContext, model: LlamaModel, prompt: array[int], tokens: list[int]) -> Iterator[bytes]:
    """The same task beside another one, parked half-way, and restored as another sequence, into other cells."""
    _decode(context, (0, prompt[:CHUNK], 0, False))
    for start in range(0, len(prompt), CHUNK):
        chunk = prompt[start : start + CHUNK]
        _decode(context, (1, chunk, start, start + len(chunk) == len(prompt)))
    sequence = 1
    for step, token in enumerate(tokens):
        yield _row(context, model)
        if step == STEPS // 2:
            sequence = _move(context, len(prompt) + step)
        _decode(context, (sequence, [token], len(prompt) + step, True))
    context.close()


def _move(context: LlamaContext, length: int) -> int:
    size = context.state_size(1)
    state = ctypes.create_string_buffer(size)
    if context.save(1, ctypes.addressof(state), size) != size:
        raise EngineFailed("the self-test's state can't be saved")
    _decode(context, (3, [1] * CHUNK, 0, False))  # takes the next cells
    context.remove(1)
    if not context.restore(2, ctypes.addressof(state), size) or context.length(2) != length:
        raise EngineFailed("the self-test's state can't be restored")
    return 2


def _batched(context: LlamaContext, model: LlamaModel, prompt: array[int], tokens: list[int]) -> Iterator[bytes]:
    """The same task with another one in each of its steps."""
    _decode(context, (0, prompt[:CHUNK], 0, False), (1, prompt, 0, True))
    for step, token in enumerate(tokens):
        yield _row(context, model)
        _decode(context, (0, [token], CHUNK + step, True), (1, [token], len(prompt) + step, True))
    context.close()


def _decode(context: LlamaContext, *entries: tuple[int, array[int] | list[int], int, bool]) -> None:
    if status := context.decode(entries):
        raise EngineFailed(f"the self-test's step was not computed ({status})")


def _row(context: LlamaContext, model: LlamaModel) -> bytes:
    """The last row of logits of the last step."""
    return ctypes.string_at(L.llama_get_logits_ith(context.pointer, -1), model.vocabulary_size * 4)


def _library() -> str:
    """The library that computes: on ARM boards one of several variants, by what the processor can do."""
    found = re.search(r"/(libggml-cpu[^/ ]*\.so)", Path("/proc/self/maps").read_text())
    return found[1] if found else "unknown"


if __name__ == "__main__":
    print(json.dumps(self_test(Path(sys.argv[1]), sys.argv[2])))
