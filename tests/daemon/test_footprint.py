"""Tests of footprints: what the parts of a model are charged, and how a worker's bytes are told apart."""

import os
from pathlib import Path

import pytest

from llmasos_edge.daemon.footprint import Shape, footprint, measured, steady, types_repacked
from llmasos_edge.engine.gguf import GgufHeader, read_header
from llmasos_edge.kernel.memory.budget import Region
from llmasos_edge.kernel.units import Bytes
from llmasos_edge.services.monitor import WorkerMemory
from llmasos_edge.services.store import MemoryNotes

NONE = Bytes(0)
SHAPE = Shape("q8_0", cells=4096, sequences=16, exact=False)
DRY = {SHAPE.key: {"compute": 18_000_000, "output": 6_000_000, "repacks": 0}}
REGIONS = tuple(
    Region(f"m.{name}", kind, Bytes(size))
    for name, kind, size in (
        ("weights", "weights", 100),
        ("repacked", "weights", 50),
        ("kv", "kv", 40),
        ("scratch", "kv", 10),
        ("compute", "compute", 30),
        ("runtime", "runtime", 20),
    )
)


@pytest.fixture(scope="module")
def header() -> GgufHeader:
    return read_header(Path(os.environ["LLMASOS_MODELS"]) / "SmolLM2-135M-Instruct.Q4_1.gguf")


def sizes(regions: tuple[Region, ...]) -> dict[str, int]:
    return {region.name.removeprefix("m."): region.bytes for region in regions}


def test_a_dry_run_of_the_same_shape_replaces_the_formula(header: GgufHeader) -> None:
    """The formula is the larger one; what was told for other cells counts for nothing."""
    formula = sizes(footprint("m", header, SHAPE, MemoryNotes(), NONE))
    dry = sizes(footprint("m", header, SHAPE, MemoryNotes(dry_runs=DRY), NONE))
    assert 24_000_000 < dry["compute"] < formula["compute"]
    other = Shape("q8_0", cells=4352, sequences=16, exact=False)
    assert footprint("m", header, other, MemoryNotes(dry_runs=DRY), NONE) == footprint(
        "m", header, other, MemoryNotes(), NONE
    )


def test_what_was_measured_corrects_the_runtime(header: GgufHeader) -> None:
    """Of this library's version; and what was ever seen beyond all charges comes on top."""
    first = sizes(footprint("m", header, SHAPE, MemoryNotes(), NONE))
    learnt = MemoryNotes(runtime={"0.3.36": 30 << 20, "0.1": 7}, excess=5 << 20)
    then = sizes(footprint("m", header, SHAPE, learnt, NONE))
    assert then["runtime"] == (30 + 6 + 5) << 20
    assert {**first, "runtime": 0} == {**then, "runtime": 0}


def test_states_held_aside_have_room(header: GgufHeader) -> None:
    """A quarter of the pool; all of it for an exact model. It is no part of what is there all the time."""
    approximate = footprint("m", header, SHAPE, MemoryNotes(), NONE)
    exact = sizes(footprint("m", header, Shape("q8_0", 4096, 16, exact=True), MemoryNotes(), NONE))
    assert sizes(approximate)["scratch"] == sizes(approximate)["kv"] // 4
    assert exact["scratch"] == exact["kv"]
    assert steady(approximate) == sum(sizes(approximate).values()) - sizes(approximate)["scratch"]


def test_repacked_weights_are_a_region_beside_the_mapped_ones(header: GgufHeader) -> None:
    """The file stays mapped."""
    repacked = sizes(footprint("m", header, SHAPE, MemoryNotes(), Bytes(7)))
    assert (repacked["repacked"], repacked["weights"]) == (7, header.file_size)
    assert "repacked" not in sizes(footprint("m", header, SHAPE, MemoryNotes(), NONE))


@pytest.mark.parametrize(
    ("private", "found"),
    [
        (105, {"compute": 3, "runtime": 12, "scratch": 0}),
        (135, {"compute": 30, "runtime": 15, "scratch": 0}),
        (140, {"compute": 30, "runtime": 20, "scratch": 0}),
        (155, {"compute": 30, "runtime": 20, "scratch": 15}),
    ],
)
def test_a_workers_bytes_are_told_apart(private: int, found: dict[str, int]) -> None:
    """What its load told is known; the rest fills buffers, runtime and room aside. Every byte is somewhere."""
    split = measured(REGIONS, {"repacked": 50, "runtime": 12}, WorkerMemory(weights=99, private=private))
    assert {name.removeprefix("m."): size for name, size in split.items()} == {
        "weights": 99,
        "repacked": 50,
        "kv": 40,
    } | found
    assert sum(split.values()) == 99 + private


def test_types_that_repack_depend_on_the_processor(tmp_path: Path) -> None:
    """Q4_0 (2) with AVX2 or the dot product, Q8_0 (8) on ARM alone; nothing on a Cortex-A72, or where nobody says."""
    cpuinfo = tmp_path / "cpuinfo"
    found = {}
    for name, text in (("x86", "flags : sse2 avx2"), ("a76", "Features : asimd asimddp"), ("a72", "Features : asimd")):
        cpuinfo.write_text(text)
        found[name] = types_repacked(cpuinfo)
    assert (2 in found["x86"], 8 in found["x86"]) == (True, False)
    assert {2, 8} <= found["a76"]
    assert found["a72"] == types_repacked(tmp_path / "absent") == frozenset()
