"""Residency: which idle models to drop so that another one fits."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId


@dataclass(frozen=True, slots=True)
class Resident:
    """A loaded model that is neither busy nor pinned."""

    model: ModelId
    bytes: Bytes
    used_at: Milliseconds


def choose_victims(needed: Bytes, free: Bytes, droppable: Sequence[Resident]) -> tuple[ModelId, ...] | None:
    """The least recently used models whose bytes make room; () if there is room; None if all are not enough."""
    chosen: list[ModelId] = []
    for resident in sorted(droppable, key=lambda resident: resident.used_at):
        if needed <= free:
            break
        chosen.append(resident.model)
        free = Bytes(free + resident.bytes)
    return tuple(chosen) if needed <= free else None
