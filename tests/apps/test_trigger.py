"""The tests of the trigger queue: which message starts a run, waits, replaces another, or is dropped."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.apps.template import Condition
from llmasos_edge.apps.trigger import (
    COALESCE_LIMIT,
    HELD_LIMIT,
    PAYLOAD_LIMIT,
    TOPICS_LIMIT,
    Drop,
    Start,
    Trigger,
    TriggerQueue,
    Wait,
    decode,
)
from llmasos_edge.errors import BadRequest

T = "zigbee2mqtt/kitchen/smoke"
U = "zigbee2mqtt/garage/smoke"


def queue(**kwargs: object) -> TriggerQueue:
    """Make a queue for smoke messages."""
    return TriggerQueue(Trigger("zigbee2mqtt/+/smoke", **kwargs))  # type: ignore[arg-type]  # the test's own keywords


def test_the_first_starts_and_the_newest_waits() -> None:
    """While a run is on, only the newest message waits, and starts when the run is finished."""
    it = queue()
    assert it.on_message(T, b"1", 0) == Start(T, 1)
    assert it.on_message(T, b"2", 10) == Wait(T, None)
    assert it.on_message(T, b"3", 20) == Wait(T, None, replaced=True)
    assert it.on_finished(T, 30) == Start(T, 3)
    assert it.on_finished(T, 40) is None
    assert it.on_message(T, b"4", 50) == Start(T, 4)


def test_topics_are_apart() -> None:
    """The garage never waits for the kitchen."""
    it = queue(every_s=30)
    assert it.on_message(T, b"1", 0) == Start(T, 1)
    assert it.on_message(U, b"2", 0) == Start(U, 2)


def test_the_rate_limit_counts_from_start_to_start() -> None:
    """After a run, the next starts every_s after the start of the one before."""
    it = queue(every_s=30)
    it.on_message(T, b"1", 1000)
    assert it.on_message(T, b"2", 2000) == Wait(T, None)
    assert it.next_due() is None
    assert it.on_finished(T, 5000) == Wait(T, 31_000)
    assert it.on_message(T, b"3", 6000) == Wait(T, 31_000, replaced=True)
    assert it.next_due() == 31_000
    assert it.due(30_999) == ()
    assert it.due(31_000) == (Start(T, 3),)
    assert it.due(31_000) == ()
    assert it.on_finished(T, 99_000) is None


def test_a_run_longer_than_the_rate_limit() -> None:
    """What waited for a long run starts as soon as it is over."""
    it = queue(every_s=1)
    it.on_message(T, b"1", 0)
    it.on_message(T, b"2", 10)
    assert it.due(5000) == ()
    assert it.on_finished(T, 5000) == Start(T, 2)


def test_coalesce_gives_all_that_waited_as_a_list() -> None:
    """The first run has the first message; the next has all that came since."""
    it = queue(queue="coalesce")
    assert it.on_message(T, b"1", 0) == Start(T, [1])
    assert it.on_message(T, b"2", 1) == Wait(T, None)
    assert it.on_message(T, b'"x"', 2) == Wait(T, None)
    assert it.on_finished(T, 3) == Start(T, [2, "x"])


def test_coalesce_gives_up_the_oldest() -> None:
    """The list is bounded, and giving up a message is told."""
    it = queue(queue="coalesce")
    it.on_message(T, b"0", 0)
    decisions = [it.on_message(T, str(n).encode(), n) for n in range(1, COALESCE_LIMIT + 2)]
    assert [isinstance(d, Wait) and d.replaced for d in decisions] == [False] * COALESCE_LIMIT + [True]
    assert it.on_finished(T, 999) == Start(T, list(range(2, COALESCE_LIMIT + 2)))


def test_every_starts_all_at_once() -> None:
    """With `every` nothing waits here."""
    it = queue(queue="every")
    assert [it.on_message(T, b"1", 0), it.on_message(T, b"2", 0)] == [Start(T, 1), Start(T, 2)]
    assert it.on_finished(T, 1) is None


def test_the_condition_drops_and_replaces_nothing() -> None:
    """A reading for which the condition is false does not take the place of one that waits."""
    it = queue(when=Condition("payload.smoke", ("topic", "payload")))
    it.on_message(T, b'{"smoke": true, "n": 1}', 0)
    it.on_message(T, b'{"smoke": true, "n": 2}', 1)
    assert it.on_message(T, b'{"smoke": false}', 2) == Drop(T, "condition", "the condition does not hold")
    assert it.on_finished(T, 3) == Start(T, {"smoke": True, "n": 2})


def test_bad_payloads_are_dropped_by_name() -> None:
    """What can't be read, or lacks what the condition asks, says so."""
    it = queue(when=Condition("payload.smoke", ("topic", "payload")))
    assert it.on_message(T, b"{}", 0) == Drop(T, "bad_payload", "payload.smoke is missing")
    assert it.on_message(T, b"", 0) == Drop(T, "bad_payload", "an empty payload")
    assert it.on_message(T, b"\xff", 0) == Drop(T, "bad_payload", "the payload is not UTF-8 (byte 0)")


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b"ON", "ON"),
        (b"21.5", 21.5),
        (b"NaN", "NaN"),
        (b"{", "{"),
        (b"null", None),
        (b"1" * 5000, "1" * 5000),
    ],
)
def test_decoding(payload: bytes, value: object) -> None:
    """JSON is decoded, anything else is text."""
    assert decode(payload) == value


@pytest.mark.parametrize("payload", [b"[" * 60_000, b"x" * (PAYLOAD_LIMIT + 1)])
def test_payloads_that_would_hurt(payload: bytes) -> None:
    """Depth and size are bounded."""
    with pytest.raises(BadRequest):
        decode(payload)


def test_idle_topics_are_forgotten_first() -> None:
    """With too many topics the longest idle one goes; one that runs never does."""
    it = queue(every_s=3600)
    it.on_message(T, b"1", 0)
    for n in range(TOPICS_LIMIT):
        assert isinstance(it.on_message(f"z/{n}", b"1", 1), Start)
        it.on_finished(f"z/{n}", 1)
    assert it.on_message(T, b"2", 2) == Wait(T, None)
    assert isinstance(it.on_message("z/0", b"1", 2), Start)


def test_a_topic_in_use_is_not_forgotten() -> None:
    """The least recently used topic goes, so that the rate limit of a lively one holds."""
    it = queue(every_s=3600)
    for n in range(TOPICS_LIMIT):
        it.on_message(f"z/{n}", b"1", 1)
        it.on_finished(f"z/{n}", 1)
    it.on_message("z/0", b"2", 2)
    it.due(3_600_001)
    it.on_finished("z/0", 3_600_001)
    it.on_message(T, b"1", 3_600_002)
    assert it.on_message("z/0", b"3", 3_600_003) == Wait("z/0", 7_200_001)
    assert isinstance(it.on_message("z/1", b"2", 2), Start)


def test_too_many_busy_topics() -> None:
    """When every topic has a run, a further one is refused and says why."""
    it = queue()
    for n in range(TOPICS_LIMIT):
        it.on_message(f"z/{n}", b"1", 0)
    decision = it.on_message(T, b"1", 0)
    assert isinstance(decision, Drop)
    assert decision.reason == "full"


def test_what_waits_is_bounded_in_bytes() -> None:
    """The payloads that wait have a bound together; starting them gives the room back."""
    it = queue()
    big = b"x" * PAYLOAD_LIMIT
    for n in range(HELD_LIMIT // PAYLOAD_LIMIT):
        it.on_message(f"z/{n}", b"1", 0)
        assert isinstance(it.on_message(f"z/{n}", big, 0), Wait)
    assert it.on_message(T, b"1", 0) == Start(T, 1)
    assert isinstance(it.on_message(T, b"2", 0), Drop)
    it.on_finished("z/0", 1)
    assert it.on_message(T, b"2", 1) == Wait(T, None)


MOVES = st.lists(st.tuples(st.sampled_from([T, U]), st.sampled_from(["message", "finish", "wait"])), max_size=60)


@given(MOVES, st.sampled_from(["latest", "coalesce"]), st.sampled_from([0, 1, 5]))
def test_one_run_at_a_time_in_order_and_in_time(moves: list[tuple[str, str]], kind: str, every_s: int) -> None:
    """Per topic: one run at a time, never sooner than the limit, never an older message later, nothing twice."""
    it = queue(queue=kind, every_s=every_s)
    running: dict[str, int] = {}
    last: dict[str, tuple[int, int]] = {}
    now = 0
    for count, (topic, move) in enumerate(moves, start=1):
        now += 700
        starts: list[object] = []
        if move == "message":
            starts.append(it.on_message(topic, json.dumps(count).encode(), now))
        elif move == "finish" and topic in running:
            del running[topic]
            starts.append(it.on_finished(topic, now))
        else:
            starts.extend(it.due(now))
        for start in starts:
            if isinstance(start, Start):
                values = start.payload if isinstance(start.payload, list) else [start.payload]
                assert values == sorted(set(values))
                before, newest = last.get(start.topic, (-10_000, 0))
                assert start.topic not in running
                assert now - before >= every_s * 1000
                assert values[0] > newest
                running[start.topic], last[start.topic] = now, (now, values[-1])
