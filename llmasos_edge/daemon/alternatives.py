"""What would fit in place of a model that does not: its settings made smaller, one at a time if that is enough."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from llmasos_edge.config.node import ModelConfig
from llmasos_edge.kernel.hal import Alternative
from llmasos_edge.kernel.units import Bytes

CONTEXT_STEP: Final = 256  # tokens
Cost = Callable[[ModelConfig], int]


def smaller(config: ModelConfig, context: int, cost: Cost, room: Bytes) -> Iterator[Alternative]:
    """Changes of settings, each with what the model would need then; `context` is what it has now.

    Where no single one is enough, the longest context that all the others together leave.
    """
    single = [
        _shorter(config, context, cost, room),
        _first([{"kv": "q8_0"}] if config.kv != "q8_0" else [], config, cost, room),
        _first([{"exact": False}] if config.exact else [], config, cost, room),
        _first(
            [{"sequences": config.sequences >> n} for n in range(1, config.sequences.bit_length())], config, cost, room
        ),
    ]
    found = [each for each in single if each is not None]
    if found:
        yield from found
        return
    least: dict[str, Any] = {"kv": "q8_0", "exact": False, "sequences": 1}
    together = _shorter(replace(config, **least), context, cost, room)
    if together is not None:
        changed = {key: value for key, value in least.items() if getattr(config, key) != value}
        yield Alternative(together.change | changed, together.needed)


def _shorter(config: ModelConfig, context: int, cost: Cost, room: Bytes) -> Alternative | None:
    """The longest context, alone in its pool."""
    steps = (n * CONTEXT_STEP for n in range(context // CONTEXT_STEP, 0, -1))
    return _first([{"context": cells, "kv_pool": cells} for cells in steps], config, cost, room)


def _first(changes: list[dict[str, Any]], config: ModelConfig, cost: Cost, room: Bytes) -> Alternative | None:
    """The first of the changes that fits."""
    for change in changes:
        needed = cost(replace(config, **change))
        if needed <= room:
            return Alternative(change, Bytes(needed))
    return None
