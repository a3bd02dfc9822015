"""Tests of the counters of clients, and of what classes are owed."""

import pytest

from llmasos_edge.kernel.scheduling.shares import CRITICAL_DEBT_MS, FEW, GENERATED, LOWER_SHARE, TURN_MS, Debts, Shares
from llmasos_edge.kernel.units import ClientId, Priority

A, B, C = ClientId("a"), ClientId("b"), ClientId("c")
BATCH, NORMAL, INTERACTIVE, CRITICAL = Priority


def test_a_generated_token_weighs_more() -> None:
    """Than one of a prompt."""
    shares = Shares()
    shares.charge(A, 10, 3)
    assert shares.served(A) == 10 + 3 * GENERATED


def test_who_comes_back_starts_level_with_the_least_of_the_active() -> None:
    """What it left unused is not saved up; what it had too much is not forgotten while others are there."""
    shares = Shares()
    for client, tokens in ((A, 500), (B, 300), (C, 900)):
        shares.charge(client, tokens, 0)
    shares.enter(least=300)
    assert shares.served(ClientId("new")) == 300
    assert shares.served(C) == 900


def test_when_nobody_is_there_all_are_even() -> None:
    """An old debt does not outlive the rush."""
    shares = Shares()
    shares.charge(A, 500, 0)
    shares.enter(least=500)
    assert (shares.served(A), shares.served(B)) == (500, 500)
    shares.enter(least=None)
    assert (shares.served(A), shares.served(B)) == (0, 0)


def test_names_that_come_and_go_take_no_memory() -> None:
    """Whose counter would be lifted anyway is forgotten."""
    shares = Shares()
    shares.charge(A, 5000, 0)
    for number in range(1000):
        shares.enter(least=number)
        shares.charge(ClientId(f"c{number}"), 1, 0)
    assert len(shares._served) <= 2 * FEW
    assert shares.served(A) == 5000


def test_a_class_earns_while_it_looks_on_and_spends_while_it_runs() -> None:
    """Its share of what is computed; nothing once it no longer waits."""
    debts = Debts()
    debts.account(1000, {BATCH: 3, NORMAL: 0}, {INTERACTIVE})
    assert debts.owed(BATCH) == pytest.approx(1000 * LOWER_SHARE)
    assert debts.owed(NORMAL) == 0
    debts.account(40, {BATCH: 2}, {INTERACTIVE, BATCH})
    assert debts.owed(BATCH) == pytest.approx(1000 * LOWER_SHARE - 40)
    debts.account(1000, {BATCH: 0}, {INTERACTIVE})
    assert debts.owed(BATCH) == 0


def test_a_debt_is_bounded() -> None:
    """It suffices for one turn under the critical class, and never for a long time on end."""
    debts = Debts()
    debts.account(1e9, {BATCH: 1}, {CRITICAL})
    assert debts.owed(BATCH) == CRITICAL_DEBT_MS + TURN_MS
    debts.account(1e9, {}, {BATCH})
    assert debts.owed(BATCH) == 0
