"""Tests of the ledger: a state machine that never gets over the budget."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmasos_edge.errors import Panic
from llmasos_edge.kernel.memory.budget import Ledger, Region
from llmasos_edge.kernel.units import Bytes

BUDGET = 1000


class LedgerMachine(RuleBasedStateMachine):
    """Charges, adjusts and releases groups of regions under a budget that changes; the sum is counted beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(Bytes(BUDGET))
        self.charged: list[tuple[Region, ...]] = []
        self.made = 0
        self.budget = BUDGET

    def sum(self) -> int:
        return sum(region.bytes for group in self.charged for region in group)

    @rule(sizes=st.lists(st.integers(0, 600), min_size=1, max_size=3))
    def charge(self, sizes: list[int]) -> None:
        self.made += 1
        group = tuple(Region(f"{self.made}.{n}", "kv", Bytes(size)) for n, size in enumerate(sizes))
        fits = self.sum() + sum(sizes) <= self.budget
        assert self.ledger.can_charge(*group) == fits
        assert self.ledger.charge(*group) == fits
        if fits:
            self.charged.append(group)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.charged:
            self.ledger.release(*self.charged.pop(data.draw(st.integers(0, len(self.charged) - 1))))

    @rule(data=st.data(), size=st.integers(0, 600))
    def adjust(self, data: st.DataObject, size: int) -> None:
        """As a correction does: a region takes another size if there is room for it, and else stays as it was."""
        if not self.charged:
            return
        at = data.draw(st.integers(0, len(self.charged) - 1))
        *others, last = self.charged[at]
        other = Region(last.name, last.kind, Bytes(size))
        fits = self.sum() - last.bytes + size <= self.budget
        assert self.ledger.adjust(other) == fits
        if fits:
            self.charged[at] = (*others, other)

    @rule(budget=st.integers(0, 2 * BUDGET))
    def resize(self, budget: int) -> None:
        """Never below what is charged."""
        fits = self.sum() <= budget
        assert self.ledger.resize(Bytes(budget)) == fits
        if fits:
            self.budget = budget

    @invariant()
    def balanced(self) -> None:
        self.ledger.check_invariants()
        assert self.ledger.charged == self.sum() <= self.budget == self.ledger.budget
        assert self.ledger.free == self.budget - self.sum()
        assert sorted(self.ledger.regions(), key=lambda region: region.name) == sorted(
            (region for group in self.charged for region in group), key=lambda region: region.name
        )


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=50, stateful_step_count=30)


def test_a_name_is_charged_once_and_released_as_it_was() -> None:
    """A second charge of a name, another size at its release, and a second release are bugs of the caller."""
    ledger, region = Ledger(Bytes(BUDGET)), Region("m kv", "kv", Bytes(5))
    assert ledger.charge(region)
    with pytest.raises(Panic, match="charged already"):
        ledger.charge(region)
    with pytest.raises(Panic, match="not charged"):
        ledger.release(Region("m kv", "kv", Bytes(6)))


def test_only_what_is_charged_is_adjusted() -> None:
    """Anything else is a bug of the caller."""
    ledger = Ledger(Bytes(BUDGET))
    with pytest.raises(Panic, match="not charged"):
        ledger.adjust(Region("m kv", "kv", Bytes(5)))


def test_negative_bytes_are_a_panic() -> None:
    """They would make room that is not there."""
    with pytest.raises(Panic, match="negative"):
        Ledger(Bytes(BUDGET)).charge(Region("m", "kv", Bytes(-1)))


def test_the_budget_shrinks_to_what_is_charged() -> None:
    """Not below; and what it gains can be charged at once."""
    ledger, region = Ledger(Bytes(BUDGET)), Region("m kv", "kv", Bytes(500))
    assert ledger.charge(region)
    assert not ledger.resize(Bytes(499))
    assert ledger.budget == BUDGET
    assert ledger.resize(Bytes(500))
    assert ledger.free == 0
    assert ledger.resize(Bytes(2 * BUDGET))
    assert ledger.charge(Region("n kv", "kv", Bytes(BUDGET)))
