"""Tests of the operator's view of sessions: listed, shown, parked and removed, by name and client."""

from functools import partial
from typing import Any

import pytest

from llmasos_edge.kernel import hal
from llmasos_edge.kernel.units import Bytes, Milliseconds, SessionId, Tokens
from llmasos_edge.services.journal import Turns
from llmasos_edge.services.security import OPERATOR
from tests.api.conftest import MODEL, Desk
from tests.api.test_control_server import Line

CHAT = {"messages": [{"role": "user", "content": "hello"}], "session": "one"}


@pytest.fixture
def line(desk: Desk) -> Line:
    desk.disk()
    return Line(desk)


def talk(desk: Desk, line: Line, session: str = "one") -> None:
    """A turn of the operator's, whole and on the disk."""
    before = len(desk.journal.sessions())
    line.call("submit", op="chat", body=CHAT | {"session": session})
    desk.engine.say("hi")
    desk.engine.finish()
    desk.settle()
    desk.until(lambda: len(desk.journal.sessions()) > before)


def answer(line: Line, name: str, **args: object) -> Any:
    """What the call gave, or its error."""
    _, lines = line.call(name, **args)
    return lines[-1].get("result", lines[-1].get("error"))


def test_a_session_is_listed_with_where_its_state_lies(desk: Desk, line: Line) -> None:
    """The one used last comes first; a worker that saves nothing leaves it dropped."""
    for session in ("one", "two"):
        talk(desk, line, session)
        desk.now = Milliseconds(desk.now + 10)
    rows = answer(line, "sessions")
    assert [(row["session"], row["client"], row["model"], row["state"], row["messages"]) for row in rows] == [
        ("two", OPERATOR, MODEL, "dropped", 2),
        ("one", OPERATOR, MODEL, "dropped", 2),
    ]


def test_a_session_is_shown_with_what_was_said(desk: Desk, line: Line) -> None:
    """Both sides of it."""
    talk(desk, line)
    shown = answer(line, "session.show", session="one")
    assert shown["turns"] == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    assert shown["states"][0]["state"] == "dropped"


def test_a_removed_session_begins_anew(desk: Desk, line: Line) -> None:
    """Nothing is left of it on the disk, in memory or in the swapper."""
    talk(desk, line)
    line.call("session.rm", session="one")
    desk.until(lambda: not desk.journal.sessions())
    assert answer(line, "sessions") == []
    assert desk.kernel.swapper.of_session((OPERATOR, SessionId("one"))) == []
    talk(desk, line)
    assert len(answer(line, "session.show", session="one")["turns"]) == 2


@pytest.mark.parametrize("call", ["session.rm", "session.park"])
def test_a_session_with_tasks_is_left_alone(desk: Desk, line: Line, call: str) -> None:
    """The error says what to do."""
    talk(desk, line)
    line.call("submit", op="chat", body=CHAT)
    error = answer(line, call, session="one")
    assert (error["code"], "has tasks" in error["message"]) == ("bad_request", True)


@pytest.mark.parametrize("call", ["session.show", "session.rm", "session.park"])
def test_an_unknown_session(line: Line, call: str) -> None:
    """Is named, and where to look."""
    error = answer(line, call, session="nowhere")
    assert error == {"code": "unknown_session", "message": "there is no session 'nowhere': see `llmasos sessions`"}


def test_a_name_that_two_clients_use(desk: Desk, line: Line) -> None:
    """Which one is meant has to be said."""
    talk(desk, line)
    desk.journal.append_turns("lamp", Turns("one", [{"role": "user", "content": "dark"}]), lambda _: None)
    desk.until(lambda: len(desk.journal.sessions()) == 2)
    error = answer(line, "session.show", session="one")
    assert OPERATOR in error["message"]
    assert "lamp" in error["message"]
    assert answer(line, "session.show", session="one", client="lamp")["client"] == "lamp"


def test_a_session_that_was_idle_for_too_long(desk: Desk, line: Line) -> None:
    """What was computed of it goes with what was said in it."""
    talk(desk, line)
    desk.journal.on_expired = lambda keys: desk.post(partial(desk.sessions.expired, keys))
    desk.now = Milliseconds(desk.now + 8 * 24 * 3_600_000)
    desk.journal.sweep()
    desk.until(lambda: not desk.kernel.swapper.of_session((OPERATOR, SessionId("one"))))
    assert answer(line, "sessions") == []


def test_a_session_in_the_arena(desk: Desk, line: Line) -> None:
    """Without a swap file it stays there, whoever wants it out."""
    talk(desk, line)
    swapper = desk.kernel.swapper
    (state,) = swapper.of_session((OPERATOR, SessionId("one")))
    assert state.saving is not None
    swapper.saved(hal.Saved(state.saving.id, Tokens(0), Tokens(5), Bytes(60), 1))
    assert answer(line, "session.park", session="one")["states"][0]["state"] == "parked"
    assert answer(line, "sessions")[0]["bytes"] == 60
