"""Tests of the refusal of what can never fit."""

from llmasos_edge.kernel.admission import never_fits
from llmasos_edge.kernel.hal import Alternative
from llmasos_edge.kernel.units import Bytes, ModelId

M, MIB = ModelId("m"), 1 << 20


def test_it_says_what_would_fit() -> None:
    """In words for people, as settings of the node file, and as values for programs."""
    smaller = Alternative({"context": 1024, "kv_pool": 1024}, Bytes(300 * MIB))
    other = Alternative({"exact": False}, Bytes(310 * MIB))
    error = never_fits(M, Bytes(500 * MIB), Bytes(512 * MIB), Bytes(400 * MIB), [smaller, other])
    assert error.message == (
        "m needs 500 MiB, and the budget leaves 400 MiB for models: what would fit: "
        "`context: 1024`, `kv_pool: 1024` (300 MiB); or `exact: false` (310 MiB)"
    )
    assert error.details == {
        "needed": 500 * MIB,
        "budget": 512 * MIB,
        "available": 400 * MIB,
        "would_fit": [
            {"context": 1024, "kv_pool": 1024, "needed": 300 * MIB},
            {"exact": False, "needed": 310 * MIB},
        ],
    }


def test_it_says_if_nothing_would() -> None:
    """And how to mend that."""
    error = never_fits(M, Bytes(500 * MIB), Bytes(512 * MIB), Bytes(1), [])
    assert "raise `memory.budget`, or add a smaller model" in error.message
