"""Long-term admission: what can never fit is refused at once, with what would fit instead."""

from collections.abc import Sequence

from llmasos_edge.errors import NoMemory
from llmasos_edge.kernel.hal import Alternative
from llmasos_edge.kernel.units import Bytes, ModelId


def never_fits(
    model: ModelId, needed: Bytes, budget: Bytes, room: Bytes, alternatives: Sequence[Alternative]
) -> NoMemory:
    """The refusal of a model that needs more than the `room` that the budget leaves for it."""
    return NoMemory(
        f"{model} needs {needed >> 20} MiB, and the budget leaves {room >> 20} MiB for models: {_advice(alternatives)}",
        details={
            "needed": needed,
            "budget": budget,
            "available": room,
            "would_fit": [each.change | {"needed": each.needed} for each in alternatives],
        },
    )


def _advice(alternatives: Sequence[Alternative]) -> str:
    if not alternatives:
        return "nothing smaller that this node knows of would fit; raise `memory.budget`, or add a smaller model"
    return "what would fit: " + "; or ".join(map(_setting, alternatives))


def _setting(alternative: Alternative) -> str:
    settings = ", ".join(f"`{key}: {_yaml(value)}`" for key, value in alternative.change.items())
    return f"{settings} ({alternative.needed >> 20} MiB)"


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
