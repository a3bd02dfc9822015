"""The ledger: every byte is charged to a named region before it is taken, and the sum never exceeds the budget."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.units import Bytes


@dataclass(frozen=True, slots=True)
class Region:
    """One charge: `kind` is daemon, arena, weights, kv, compute or runtime; `name` is unique in the ledger."""

    name: str
    kind: str
    bytes: Bytes


class Ledger:
    """Sum of charges <= budget, always. Shortage is a value: `charge` gives False and changes nothing."""

    def __init__(self, budget: Bytes) -> None:
        self._budget = budget
        self._regions: dict[str, Region] = {}

    @property
    def budget(self) -> Bytes:
        return self._budget

    def resize(self, budget: Bytes) -> bool:
        """Set another budget; False, and nothing changes, if more than that is charged."""
        if self.charged > budget:
            return False
        self._budget = budget
        return True

    @property
    def charged(self) -> Bytes:
        return Bytes(sum(region.bytes for region in self._regions.values()))

    @property
    def free(self) -> Bytes:
        return Bytes(self.budget - self.charged)

    def can_charge(self, *regions: Region) -> bool:
        return sum(region.bytes for region in regions) <= self.free

    def charge(self, *regions: Region) -> bool:
        """Charge all of them, or none."""
        if not self.can_charge(*regions):
            return False
        for region in regions:
            if region.name in self._regions or region.bytes < 0:
                raise Panic(f"Ledger.charge: {region} is charged already, or negative")
            self._regions[region.name] = region
        return True

    def adjust(self, region: Region) -> bool:
        """Charge another size for a region that is charged; False, and nothing changes, if there is no room for it."""
        before = self._regions.get(region.name)
        if before is None or region.bytes < 0:
            raise Panic(f"Ledger.adjust: {region} is not charged, or negative")
        if region.bytes - before.bytes > self.free:
            return False
        self._regions[region.name] = region
        return True

    def release(self, *regions: Region) -> None:
        for region in regions:
            if self._regions.pop(region.name, None) != region:
                raise Panic(f"Ledger.release: {region} is not charged")

    def regions(self) -> Iterator[Region]:
        return iter(tuple(self._regions.values()))

    def check_invariants(self) -> None:
        if self.charged > self.budget:
            raise Panic(f"Ledger.check_invariants: {self.charged} charged of {self.budget}")
