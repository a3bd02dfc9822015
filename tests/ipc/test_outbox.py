"""Tests of the outbox: order, bounds, and threads that meet there."""

import threading

import pytest

from llmasos_edge.ipc.outbox import LONG, OVERHEAD, Outbox, Outgoing


def message(number: int, size: int = 10) -> Outgoing:
    return Outgoing(f"t/{number}", b"x" * size, 1, False, None, None, None)


class Broker:
    """Takes as many as it has room for."""

    def __init__(self, room: int, limit: int = 1 << 20) -> None:
        self.room, self.got = room, list[str]()
        self.outbox = Outbox(limit, lambda: self.room > 0, self.take)

    def take(self, message: Outgoing) -> None:
        self.room -= 1
        self.got.append(message.topic)


def test_what_does_not_go_at_once_waits_in_line() -> None:
    """It goes when there is room, and what comes later goes after it."""
    broker = Broker(room=1)
    for number in range(3):
        assert broker.outbox.put(message(number))
    assert (broker.got, len(broker.outbox)) == (["t/0"], 2)
    broker.room = 1
    assert broker.outbox.put(message(3))
    assert (broker.got, len(broker.outbox)) == (["t/0", "t/1"], 2)
    broker.room = 9
    broker.outbox.pump()
    assert (broker.got, len(broker.outbox)) == (["t/0", "t/1", "t/2", "t/3"], 0)


def test_the_line_is_bounded_by_bytes() -> None:
    """What is too much is not taken; one message alone always is."""
    broker = Broker(room=0, limit=2 * (OVERHEAD + 13))
    assert [broker.outbox.put(message(number)) for number in range(3)] == [True, True, False]
    broker.room = 1
    broker.outbox.pump()
    assert broker.outbox.put(message(4))
    large = Broker(room=0, limit=10)
    assert [large.outbox.put(message(number, 1000)) for number in range(2)] == [True, False]


def test_a_long_line_says_so() -> None:
    """From so many messages on."""
    broker = Broker(room=0)
    for number in range(LONG):
        assert not broker.outbox.long
        broker.outbox.put(message(number))
    assert broker.outbox.long


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "x" * 70_000])
def test_no_topic_to_publish_to(topic: str) -> None:
    """Told before it waits."""
    with pytest.raises(ValueError, match="no topic"):
        Outgoing(topic, b"", 1, False, None, None, None)


def test_threads_that_put_and_pump_lose_nothing() -> None:
    """Every message goes once, in the order in which its thread put it, and nothing is left in line."""
    lock, broker = threading.Lock(), Broker(room=0)

    def acknowledge() -> None:
        while len(broker.got) < 2000:
            with lock:
                broker.room += 3
            broker.outbox.pump()

    def put(first: int) -> None:
        for number in range(first, first + 500):
            broker.outbox.put(message(number))

    threads = [threading.Thread(target=put, args=(500 * number,)) for number in range(4)]
    threads.append(threading.Thread(target=acknowledge))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(broker.outbox) == 0
    numbers = [int(topic[2:]) for topic in broker.got]
    assert sorted(numbers) == list(range(2000))
    for first in range(0, 2000, 500):
        mine = [number for number in numbers if first <= number < first + 500]
        assert mine == sorted(mine)
