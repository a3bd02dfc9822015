"""Tests of the trace: a bounded ring, and listeners that come and go."""

from llmasos_edge.kernel.trace import RING, Trace, TraceEvent
from llmasos_edge.kernel.units import Milliseconds


def test_the_ring_keeps_the_newest_events() -> None:
    """The oldest make room."""
    trace = Trace()
    for at in range(RING + 3):
        trace.record(Milliseconds(at), "kind", number=at)
    assert trace.events()[0] == TraceEvent(Milliseconds(3), "kind", {"number": 3})
    assert len(trace.events()) == RING


def test_a_listener_hears_events_until_it_unfollows() -> None:
    """One that unfollows in the middle of an event disturbs nobody."""
    trace, heard = Trace(), list[str]()

    def once(event: TraceEvent) -> None:
        heard.append("once")
        trace.unfollow(once)

    trace.follow(once)
    trace.follow(lambda event: heard.append(event.kind))
    trace.record(Milliseconds(1), "first")
    trace.record(Milliseconds(2), "second")
    assert heard == ["once", "first", "second"]


def test_what_is_told_is_not_kept() -> None:
    """It comes too often for the ring; listeners hear it all the same."""
    trace, heard = Trace(), list[TraceEvent]()
    trace.follow(heard.append)
    trace.tell(Milliseconds(1), "model.loading", progress=0.5)
    assert heard == [TraceEvent(Milliseconds(1), "model.loading", {"progress": 0.5})]
    assert trace.events() == []
