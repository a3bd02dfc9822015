"""Tests of the acknowledgements that we owe the broker, and of those that it owes us."""

import random

from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.ipc.acks import AckLine, Deliveries


@given(st.permutations(range(6)))
def test_acknowledgements_go_out_in_order_of_receipt(order: list[int]) -> None:
    """Whatever the order in which work ends, PUBACKs leave in the order in which messages came."""
    sent: list[int] = []
    line = AckLine(sent.append)
    line.open()
    acks = [line.take(mid) for mid in range(6)]
    for count, number in enumerate(order, start=1):
        acks[number]()
        done = set(order[:count])
        assert sent == [mid for mid in range(6) if set(range(mid + 1)) <= done]


def test_an_acknowledgement_counts_once() -> None:
    """A second call neither sends again nor releases what waits behind."""
    sent: list[int] = []
    line = AckLine(sent.append)
    line.open()
    first, second = line.take(1), line.take(2)
    first()
    first()
    assert sent == [1]
    second()
    assert sent == [1, 2]


def test_nothing_is_acknowledged_across_connections() -> None:
    """A message of an earlier connection is not acknowledged on a later one, where its id may be another's."""
    sent: list[int] = []
    line = AckLine(sent.append)
    before = line.take(9)
    line.open()
    old = line.take(1)
    line.close()
    between = line.take(3)
    line.open()
    new = line.take(1)
    for late in (before, old, between):
        late()
    assert sent == []
    new()
    assert sent == [1]


def test_a_delivery_is_told_once_the_broker_has_it() -> None:
    """`then` is called at the acknowledgement, not before, and only once."""
    told: list[int] = []
    deliveries = Deliveries(limit=9)
    with deliveries.handing_over():
        deliveries.expect(1, 1, lambda: told.append(1))
    assert told == []
    deliveries.acknowledged(1)
    deliveries.acknowledged(1)
    assert told == [1]


def test_an_acknowledgement_that_overtakes_the_hand_over_counts() -> None:
    """The broker may be quicker than the thread that publishes."""
    told: list[int] = []
    deliveries = Deliveries(limit=9)
    with deliveries.handing_over():
        deliveries.acknowledged(1)
        deliveries.expect(1, 1, lambda: told.append(1))
    assert told == [1]
    with deliveries.handing_over():
        deliveries.expect(1, 1, lambda: told.append(2))
    assert told == [1]


def test_stray_acknowledgements_are_not_kept() -> None:
    """One that nobody waits for is not taken for that of a later message with the same id."""
    told: list[int] = []
    deliveries = Deliveries(limit=9)
    deliveries.acknowledged(1)
    with deliveries.handing_over():
        deliveries.acknowledged(2)
    with deliveries.handing_over():
        deliveries.expect(1, 1, lambda: told.append(1))
        deliveries.expect(2, 1, lambda: told.append(2))
    assert told == []
    assert len(deliveries) == 2


def test_deliveries_are_bounded_and_unsent_ones_are_lost_with_the_connection() -> None:
    """QoS 0 ends with its connection; QoS 1 waits for the next, and alone counts against the limit."""
    deliveries = Deliveries(limit=2)
    for mid, qos in ((1, 0), (2, 1)):
        deliveries.expect(mid, qos, None)
    assert not deliveries.full
    deliveries.expect(3, 1, None)
    assert deliveries.full
    deliveries.lose_unsent()
    assert len(deliveries) == 2
    deliveries.acknowledged(2)
    assert not deliveries.full
    deliveries.take(3)
    assert not deliveries


def test_acknowledgements_are_held_while_we_have_much_to_send() -> None:
    """Nothing goes out until it is released; then all that is due, in order."""
    sent: list[int] = []
    long = [True]
    line = AckLine(sent.append, lambda: long[0])
    line.open()
    for mid in range(3):
        line.take(mid)()
    waiting = line.take(3)
    line.release()
    assert sent == []
    long[0] = False
    line.release()
    assert sent == [0, 1, 2]
    waiting()
    assert sent == [0, 1, 2, 3]


@given(st.randoms(use_true_random=False))
def test_random_connections_never_get_a_foreign_acknowledgement(chance: random.Random) -> None:
    """Over many reconnects each connection gets a prefix of its own messages, in order."""
    sent: list[int] = []
    line = AckLine(sent.append)
    pending = []
    for connection in range(5):
        line.open()
        sent.clear()
        mids = [connection * 10 + number for number in range(5)]
        pending += [line.take(mid) for mid in mids]
        chance.shuffle(pending)
        while pending and chance.random() < 0.8:
            pending.pop()()
        assert sent == mids[: len(sent)]
        line.close()
