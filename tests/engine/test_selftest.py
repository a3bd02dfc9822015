"""Tests of the self-test: what it finds on this machine, and that a difference is found where there is one."""

import ctypes
from pathlib import Path

import pytest

from llmasos_edge.engine.llama import LlamaContext
from llmasos_edge.engine.selftest import STEPS, self_test


def test_q8_cells_keep_their_bits(tiny: Path) -> None:
    """The default: parked, batched and undisturbed are the same here."""
    found = self_test(tiny, "q8_0")
    assert (found["deterministic"], found["parked"], found["batched"], found["rows"]) == ("yes", 0, 0, STEPS)
    assert str(found["library"]).startswith("libggml-cpu")


def test_a_difference_is_found(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte of the parked state that comes back as another one shows in the rows after it, and in no batch."""
    save = LlamaContext.save

    def damage(context: LlamaContext, sequence: int, address: int, room: int) -> int:
        size = save(context, sequence, address, room)
        ctypes.c_uint8.from_address(address + size // 2).value ^= 0x40
        return size

    monkeypatch.setattr(LlamaContext, "save", damage)
    found = self_test(tiny, "q8_0")
    assert found["deterministic"] == "approximate"
    assert 0 < int(found["parked"]) <= STEPS // 2
    assert found["batched"] == 0
