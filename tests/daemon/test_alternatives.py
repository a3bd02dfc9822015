"""Tests of what would fit instead of a model that does not."""

from dataclasses import replace

from llmasos_edge.config.node import ModelConfig
from llmasos_edge.daemon.alternatives import smaller
from llmasos_edge.kernel.hal import Alternative
from llmasos_edge.kernel.units import Bytes

CONFIG = ModelConfig("m", context=4096, sequences=16, kv="f16", exact=True)


def cost(config: ModelConfig) -> int:
    """100 for the weights; 1 for 256 cells of q8_0, twice that for f16, twice that for exact; 1 a sequence."""
    pool = (config.kv_pool or 8192) // 256 * (2 if config.kv == "f16" else 1) * (2 if config.exact else 1)
    return 100 + pool + config.sequences


def test_single_changes_that_are_enough() -> None:
    """The longest context, smaller cells, no exactness, fewer sequences: only those that fit, with what they need."""
    assert cost(CONFIG) == 244
    found = list(smaller(CONFIG, 4096, cost, Bytes(180)))
    assert found == [
        Alternative({"context": 4096, "kv_pool": 4096}, Bytes(180)),
        Alternative({"kv": "q8_0"}, Bytes(180)),
        Alternative({"exact": False}, Bytes(180)),
    ]
    assert Alternative({"sequences": 8}, Bytes(236)) in list(smaller(CONFIG, 4096, cost, Bytes(240)))


def test_all_together_where_no_single_one_is_enough() -> None:
    """And then as long a context as there is room for; what is as it was is not named."""
    assert list(smaller(CONFIG, 4096, cost, Bytes(111))) == [
        Alternative({"context": 2560, "kv_pool": 2560, "kv": "q8_0", "exact": False, "sequences": 1}, Bytes(111))
    ]
    plain = replace(CONFIG, kv="q8_0", exact=False)
    (found,) = smaller(plain, 512, cost, Bytes(102))
    assert found.change == {"context": 256, "kv_pool": 256, "sequences": 1}


def test_nothing_where_the_weights_alone_are_too_many() -> None:
    """No setting mends that."""
    assert list(smaller(CONFIG, 4096, cost, Bytes(99))) == []
