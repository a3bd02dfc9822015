"""Tests of the operator's calls: submit and its events, hanging up, wait, detached work after a restart, dmesg."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from llmasos_edge.api.calls import Calls
from llmasos_edge.api.control_server import ControlCalls
from llmasos_edge.api.standing import TELL_EVERY_MS, Standing
from llmasos_edge.errors import BadRequest
from llmasos_edge.ipc.control import Call, Peer
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.units import Milliseconds, ModelId, TaskId
from llmasos_edge.services.security import Security
from tests.api.conftest import MODEL, Desk, ScriptedEngine


class Line:
    """The other end of a connection: makes calls, and keeps what comes back."""

    def __init__(self, desk: Desk) -> None:
        absent: Any = None
        self.standing = Standing(desk.syscalls)
        calls = Calls(
            node="desk",
            boot=desk.journal.boot(),
            kernel=desk.kernel,
            syscalls=desk.syscalls,
            standing=self.standing,
            door=desk.door,
            models=absent,
            apps=absent,
            sessions=desk.sessions,
            about=absent,
            clock_ms=lambda: desk.now,
            slow=lambda work, done, failed: done(work()),
        )
        security = Security([], proven=True)
        self.control = ControlCalls(desk.door, calls, desk.journal, security, desk.trace, desk.post)
        self._desk = desk

    def call(self, name: str, **args: object) -> tuple[Call, list[dict[str, Any]]]:
        """The call, and the lines that answer it, as they come."""
        lines: list[dict[str, Any]] = []
        send: Callable[[bytes], None] = lambda line: lines.append(json.loads(line))  # noqa: E731
        call = Call(name, dict(args), Peer(1, 0, 0), send)
        self.control.handle(call)
        self._desk.settle()
        return call, lines

    def submit(self, **args: object) -> tuple[Call, list[dict[str, Any]]]:
        return self.call("submit", **({"op": "generate", "body": {"prompt": "x"}} | args))


@pytest.fixture
def line(desk: Desk) -> Line:
    desk.disk()
    return Line(desk)


def test_a_submit_tells_accepted_deltas_and_its_reply(desk: Desk, line: Line) -> None:
    """In this order; the reply is the contract's."""
    _, lines = line.submit()
    desk.answer("hello")
    assert [next(iter(each)) for each in lines] == ["event", "event", "result"]
    assert lines[0]["event"]["accepted"]["task"] == "1-1"
    assert lines[1]["event"] == {"delta": "hello", "attempt": 1}
    assert (lines[2]["result"]["status"], lines[2]["result"]["output"]["text"]) == ("ok", "hello")


def test_who_hangs_up_cancels_the_task(desk: Desk, line: Line) -> None:
    """Nobody computes for nobody; after the end hanging up does nothing."""
    call, _ = line.submit()
    call.cancel()
    desk.settle()
    assert desk.kernel.table.live_count == 0
    call, lines = line.submit()
    desk.answer()
    call.cancel()
    desk.settle()
    assert "result" in lines[-1]


def test_detached_work_is_durable_and_waited_for(desk: Desk, line: Line) -> None:
    """The id comes once the disk has it; `wait` shows what was said so far, then the rest, then the reply."""
    _, lines = line.submit(detach=True)
    desk.until(lambda: lines)
    assert lines == [{"result": {"task": "1-1", "position": 0}}]
    desk.engine.say("one ")
    desk.settle()
    _, waiting = line.call("wait", task="1-1")
    desk.answer("two")
    desk.until(lambda: "result" in waiting[-1])
    assert [each["event"]["delta"] for each in waiting[:-1]] == ["one ", "two"]
    assert waiting[-1]["result"]["output"]["text"] == "one two"
    _, again = line.call("wait", task="1-1")
    assert again[-1]["result"]["output"]["text"] == "one two"
    assert "error" in line.call("wait", task="1-7")[1][0]


def test_a_detached_repeat_gets_the_id_at_once(desk: Desk, line: Line) -> None:
    """It does not wait for the answer of the first one."""
    body = {"id": "mine", "prompt": "x"}
    _, first = line.submit(body=body, detach=True)
    desk.until(lambda: first)
    _, again = line.submit(body=body, detach=True)
    assert again[0]["result"]["task"] == first[0]["result"]["task"]


def test_errors_of_a_task_are_the_calls_errors(desk: Desk, line: Line) -> None:
    """With code and details, as everywhere."""
    _, lines = line.submit()
    _, killed = line.call("kill", task="1-1")
    assert killed == [{"result": {"task": "1-1", "state": "TERMINATED"}}]
    assert lines[-1]["error"]["code"] == "cancelled"
    assert line.call("suspend", task="1-1")[1][0]["error"]["code"] == "bad_request"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("submit", {"op": "cancel", "body": {"target": "x"}}),
        ("submit", {"op": "generate", "body": {}}),
        ("submit", {"op": "generate"}),
        ("wait", {}),
        ("ps", {"al": True}),
        ("nothing", {}),
    ],
)
def test_a_wrong_call_is_refused(line: Line, name: str, args: dict[str, object]) -> None:
    """Before it reaches the kernel."""
    with pytest.raises(BadRequest):
        line.call(name, **args)


def test_dmesg_shows_what_was_and_follows_what_comes(desk: Desk, line: Line) -> None:
    """Until its reader hangs up."""
    line.submit()
    _, lines = line.call("dmesg")
    assert "task.submitted" in [each["event"]["trace"]["kind"] for each in lines[:-1]]
    assert lines[-1] == {"result": {}}
    call, follow = line.call("dmesg", follow=True)
    desk.answer()
    assert follow[-1]["event"]["trace"]["kind"] == "task.ended"
    call.cancel()
    desk.settle()
    count = len(follow)
    line.submit()
    assert len(follow) == count


def loading(desk: Desk, line: Line, monkeypatch: pytest.MonkeyPatch, *events: hal.Event) -> list[dict[str, Any]]:
    """What `model.load` is told while its worker says this."""

    def load(model: ModelId) -> ScriptedEngine:
        for event in events:
            desk.post(partial(desk.dispatcher.handle, event, desk.now))
        return desk.engine

    monkeypatch.setattr(desk.engine, "load", load)
    return line.call("model.load", model=MODEL)[1]


def test_a_load_tells_how_far_it_is_and_how_it_ended(desk: Desk, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer comes when the model is loaded; asked again, at once."""
    lines = loading(desk, line, monkeypatch, hal.Loading(MODEL, 0.25), hal.Loading(MODEL, 0.9), hal.Loaded(MODEL, {}))
    assert [each["event"]["progress"] for each in lines[:-1]] == [
        {"stage": "loading", "fraction": 0.25},
        {"stage": "loading", "fraction": 0.9},
    ]
    assert lines[-1] == {"result": {"id": MODEL, "state": "loaded"}}
    assert line.call("model.load", model=MODEL)[1] == [{"result": {"id": MODEL, "state": "loaded"}}]


def test_a_load_that_fails_or_is_given_up_says_why(desk: Desk, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's last word; or that somebody dropped the model, which is no failure of it."""
    (answer,) = loading(desk, line, monkeypatch, hal.Died(MODEL, "its file is broken"))
    assert answer["error"]["code"] == "engine_failed"
    assert answer["error"]["message"] == f"{MODEL} could not be loaded: its file is broken"
    lines = loading(desk, line, monkeypatch, hal.Loading(MODEL, 0.5))
    assert line.call("model.drop", model=MODEL)[1] == [{"result": {"id": MODEL, "state": "unloaded"}}]
    assert lines[-1]["error"] == {"code": "cancelled", "message": f"{MODEL} was dropped while it was loaded"}
    assert desk.syscalls.state(MODEL) == "unloaded"


def test_who_waits_hears_where_it_stands(desk: Desk, line: Line) -> None:
    """Every two seconds until it runs: who submitted it, and who waits for it; not while it is suspended."""
    _, first = line.submit()
    call, lines = line.submit(body={"prompt": "x", "session": "s"})
    _, later = line.submit(body={"prompt": "x", "session": "s"})
    line.call("kill", task="1-1")
    assert "error" in first[-1]
    standing = line.standing

    def pass_on() -> None:
        desk.now = Milliseconds(desk.now + TELL_EVERY_MS)
        assert standing.next_tick() == desk.now
        standing.tick(desk.now)

    pass_on()
    assert [each["event"] for each in lines if "waits" in each["event"]] == []
    (place,) = [each["event"]["waits"] for each in later if "waits" in each["event"]]
    assert place["position"] == 1
    assert place["eta_ms"] > 0
    _, waiter = line.call("wait", task="1-3")
    line.call("suspend", task="1-3")
    shown = line.call("show", task="1-3")[1][0]["result"]
    assert (shown["state"], shown["position"], shown["eta_ms"]) == ("SUSPENDED", None, None)
    pass_on()
    assert waiter == []
    line.call("resume", task="1-3")
    pass_on()
    assert waiter[0]["event"]["waits"]["position"] == 1
    call.cancel()
    line.call("kill", task="1-3")
    desk.settle()
    pass_on()
    assert standing.next_tick() is None


def test_check_says_whether_the_books_balance(desk: Desk, line: Line) -> None:
    """A task that runs without a sequence is told."""
    line.submit()
    assert line.call("check")[1] == [{"result": {"sound": True, "why": None}}]
    task = desk.kernel.table.get(TaskId("1-1"))
    sequence, task.sequence = task.sequence, None
    ((found,),) = (line.call("check")[1],)
    assert not found["result"]["sound"]
    assert "1-1" in found["result"]["why"]
    task.sequence = sequence
