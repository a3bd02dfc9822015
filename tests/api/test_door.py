"""Tests of the door: what is promised, and when; repeats; restarts; sessions; with the real kernel and journal."""

from pathlib import Path

import pytest

from llmasos_edge.errors import ShuttingDown
from llmasos_edge.ipc.messages import ErrorReply, OkReply
from llmasos_edge.kernel.task import Outcome
from llmasos_edge.kernel.units import ClientId, Priority
from llmasos_edge.services import journal as journal_module
from llmasos_edge.services.security import Caller
from tests.api.conftest import Desk, Listener

BODY = b'{"prompt": "x"}'


def ok(listener: Listener) -> OkReply:
    """The one good reply."""
    (reply,) = listener.replies
    assert isinstance(reply, OkReply), reply
    return reply


def code(listener: Listener, index: int = 0) -> object:
    reply = listener.replies[index]
    assert isinstance(reply, ErrorReply)
    return reply.error["code"]


def test_nobody_is_told_of_a_durable_request_before_the_disk_has_it(desk: Desk) -> None:
    """Neither PUBACK nor `accepted` nor the reply, though the task is done by then; afterwards all three."""
    phone = Listener()
    assert desk.arrive(phone, BODY) == "1-1"
    desk.answer()
    assert (phone.acks, phone.told, phone.replies) == (0, [], [])
    desk.disk()
    desk.until(lambda: phone.replies and phone.acks)
    assert ok(phone).output.text == "hello"
    assert phone.acks == 1


def test_a_best_effort_request_never_waits_for_the_disk(desk: Desk) -> None:
    """`accepted` and the reply come without it, and there is nothing to replay."""
    phone = Listener()
    desk.arrive(phone, BODY, durable=False)
    desk.answer()
    assert ok(phone).output.text == "hello"
    assert (len(phone.told), phone.acks) == (1, 1)
    desk.disk()
    assert desk.journal.pending() == []


def test_a_full_queue_of_the_disk_refuses_and_promises_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is cancelled, the error says when to come again, and a repeat is a new request."""
    desk.disk()
    phone = Listener()
    with monkeypatch.context() as full:
        full.setattr(journal_module, "MAX_QUEUED", 0)
        desk.arrive(phone, BODY)
    assert code(phone) == "queue_full"
    assert (phone.told, phone.acks) == ([], 1)
    assert desk.kernel.table.live_count == 0
    desk.arrive(phone, BODY)
    desk.answer()
    desk.until(lambda: len(phone.replies) == 2)
    assert isinstance(phone.replies[1], OkReply)


def test_a_repeat_in_flight_joins_and_is_answered_once_for_each_place(desk: Desk) -> None:
    """On the same topic there is one stream and one reply; elsewhere there is another; the first body wins."""
    desk.disk()
    first, again, elsewhere = Listener("a"), Listener("a"), Listener("b")
    desk.arrive(first, BODY)
    desk.until(lambda: first.told)
    for listener in (again, elsewhere):
        assert desk.arrive(listener, b'{"prompt": "other"}') is None
    assert [len(each.told) for each in (first, again, elsewhere)] == [1, 1, 1]
    assert again.acks == elsewhere.acks == 1
    desk.answer()
    desk.until(lambda: first.replies and elsewhere.replies)
    assert (again.replies, again.deltas) == ([], [])
    assert first.bytes == elsewhere.bytes
    assert first.deltas == [("hello", 1)]
    assert len(desk.engine.programs) == 1


@pytest.mark.parametrize("durable", [True, False])
def test_a_repeat_after_the_reply_gets_the_same_bytes(desk: Desk, durable: bool) -> None:
    """Computed once; and its PUBACK comes too."""
    desk.disk()
    first, again = Listener("a"), Listener("a")
    desk.arrive(first, BODY, durable=durable)
    desk.answer()
    desk.until(lambda: first.replies)
    assert desk.arrive(again, BODY, durable=durable) is None
    desk.until(lambda: again.replies)
    assert again.bytes == first.bytes
    assert again.acks == 1


def test_a_durable_repeat_makes_a_best_effort_request_durable(desk: Desk) -> None:
    """Who repeats at QoS 1 what was sent at QoS 0 gets the promise of QoS 1, not before the disk has it."""
    first, again = Listener("a"), Listener("b")
    desk.arrive(first, BODY, durable=False)
    desk.arrive(again, BODY)
    assert again.acks == 0
    desk.disk()
    desk.until(lambda: again.acks)
    assert len(desk.journal.pending()) == 1


def test_the_same_id_of_another_client_is_another_request(desk: Desk) -> None:
    """Ids belong to their client."""
    desk.disk()
    mine, theirs = Listener(), Listener()
    desk.arrive(mine, BODY)
    desk.arrive(theirs, BODY, caller=Caller(ClientId("lamp"), Priority.NORMAL))
    desk.answer()
    desk.until(lambda: mine.replies and theirs.replies)
    assert ok(mine).task != ok(theirs).task


def test_after_a_restart_the_same_task_runs_with_the_same_seed(tmp_path: Path) -> None:
    """The journal's entry becomes the same task, another attempt; its deadline counts on from its acceptance."""
    before = Desk(tmp_path)
    before.disk()
    phone = Listener()
    before.arrive(phone, b'{"prompt": "x", "deadline_ms": 60000}', deadline_ms=60_000)
    before.until(lambda: phone.told)
    seed = before.engine.programs[0].sampling.seed
    before.journal.stop()
    after = Desk(tmp_path)
    after.disk()
    after.wall_ms += 20_000
    (entry,) = after.journal.pending()
    later = Listener()
    assert after.resume(later, entry) == "1-1"
    task = after.kernel.table.find(phone.told[0].task)  # type: ignore[arg-type]
    assert task is not None
    assert (task.attempt, task.submission.deadline_ms) == (2, 40_000)
    assert after.engine.programs[0].sampling.seed == seed
    repeat = Listener("x")
    after.arrive(repeat, BODY)
    assert [told.task for told in repeat.told] == ["1-1"]
    after.answer()
    after.until(lambda: later.replies)
    assert after.journal.pending() == []
    after.journal.stop()


def test_shutting_down_leaves_durable_work_in_the_journal(desk: Desk) -> None:
    """Its caller hears nothing now; one at QoS 0 is told to come again."""
    desk.disk()
    durable, effort = Listener(), Listener()
    desk.arrive(durable, BODY)
    desk.until(lambda: durable.told)
    desk.arrive(effort, b'{"id": "e", "prompt": "x"}', durable=False)
    desk.syscalls.closing = True
    for task in tuple(desk.kernel.table.live()):
        desk.dispatcher.end(task, Outcome(error=ShuttingDown("bye", retry_after_ms=1)), desk.now)
    assert code(effort) == "shutting_down"
    written: list[object] = []
    desk.journal.sweep(written.append)
    desk.until(lambda: written)
    assert durable.replies == []
    assert [entry.id for entry in desk.journal.pending()] == ["r1"]


def test_a_sessions_turns_reach_the_next_prompt_and_errors_do_not(desk: Desk) -> None:
    """What was said and answered comes before the new turn; a turn that failed has never been."""
    desk.disk()

    def turn(name: str, text: str) -> Listener:
        listener = Listener()
        body = f'{{"id": "{name}", "session": "s", "messages": [{{"role": "user", "content": "{text}"}}]}}'
        desk.arrive(listener, body.encode(), op="chat")
        return listener

    first = turn("a", "one")
    second = turn("b", "two")
    desk.answer("1")
    desk.until(lambda: first.replies)
    failed = desk.door.named("phone", "b")
    assert failed is not None
    desk.syscalls.cancel(failed, desk.now)
    desk.until(lambda: second.replies)
    turn("c", "three")
    messages = desk.engine.programs[-1].messages
    assert messages is not None
    assert [message.content for message in messages] == ["one", "1", "three"]


def test_a_refused_request_is_answered_and_acknowledged(desk: Desk) -> None:
    """An unknown model: at once, without the disk; and one of the journal is ended there."""
    phone = Listener()
    assert desk.arrive(phone, b'{"prompt": "x", "model": "none"}') is None
    assert (code(phone), phone.acks) == ("unknown_model", 1)


def test_a_bug_in_admission_is_an_internal_error_and_not_a_crash(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same message would come again after the restart: the node must not die of it each time."""
    monkeypatch.setattr(desk.syscalls, "submit", lambda *_: 1 // 0)
    phone = Listener()
    desk.arrive(phone, BODY)
    assert (code(phone), phone.acks) == ("internal", 1)
