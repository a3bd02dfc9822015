"""Tests of the journal: what was accepted survives, once, and for as long as it must."""

import random
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmasos_edge.errors import LLMasOSError, QueueFull, StoreError
from llmasos_edge.services.journal import MAX_QUEUED, Entry, Finished, Journal, Known, Turns
from llmasos_edge.services.journal_file import JournalFile

PATIENCE_S = 10.0
NOW_MS = 1_790_000_000_000
MINUTE_MS = 60_000


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.monotonic = 5_000
        self.wall = NOW_MS

    def advance(self, milliseconds: int) -> None:
        """Let time pass."""
        self.monotonic += milliseconds
        self.wall += milliseconds


class Bench:
    """Opens the same journal again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.reports: list[tuple[str, dict[str, object]]] = []
        self.open: list[Journal] = []

    def journal(self, **options: Any) -> Journal:
        """A started journal; the one before is stopped."""
        self.close()
        clock = self.clock
        options = {"monotonic_ms": lambda: clock.monotonic, "wall_ms": lambda: clock.wall, **options}
        journal = Journal(self.path, report=lambda *report: self.reports.append(report), **options)
        journal.start()
        self.open.append(journal)
        return journal

    def close(self) -> None:
        """Stop what is open."""
        while self.open:
            self.open.pop().stop()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A place for a journal."""
    bench = Bench(tmp_path / "state" / "journal.db")
    yield bench
    bench.close()


def entry(request_id: str = "1", *, client: str = "phone", task: str = "1-1", deadline_ms: int | None = None) -> Entry:
    """A request."""
    return Entry(client, request_id, task, "chat", b"{}", 7, b'{"reply_to":"x"}', NOW_MS, deadline_ms)


def wait(call: Callable[[Callable[[Any], None]], object]) -> Any:
    """Call with a `then`, and return what it is told."""
    told: list[Any] = []
    done = threading.Event()

    def then(result: Any) -> None:
        told.append(result)
        done.set()

    assert call(then) is None
    assert done.wait(PATIENCE_S)
    return told[0]


def accept(journal: Journal, request: Entry) -> None:
    """Accept, and wait until that is on the disk."""
    assert wait(lambda then: journal.accept(request, then)) is None


def finish(journal: Journal, request_id: str, reply: bytes, turns: Turns | None = None) -> None:
    """Finish, and wait until that is on the disk."""
    assert wait(lambda then: journal.finish("phone", request_id, reply, then, turns)) is None


def append(journal: Journal, session: str, message: dict[str, object]) -> None:
    """Add a message to a session, and wait until that is on the disk."""
    assert wait(lambda then: journal.append_turns("phone", Turns(session, [message]), then)) is None


def sweep(journal: Journal) -> None:
    """Sweep, and wait; it comes after whatever was queued before."""
    assert wait(journal.sweep) is None


def test_what_was_accepted_is_pending_after_a_restart(bench: Bench) -> None:
    """Every field survives, in order of acceptance, with the seed that was resolved."""
    journal = bench.journal()
    assert journal.pending() == []
    for number in (2, 1, 3):
        accept(journal, entry(str(number), deadline_ms=9))
    pending = bench.journal().pending()
    assert [each.id for each in pending] == ["2", "1", "3"]
    assert pending[0].accepted_run_ms > 0
    assert pending[0].body == b"{}"
    assert (pending[0].seed, pending[0].route, pending[0].deadline_ms) == (7, b'{"reply_to":"x"}', 9)


def test_a_finished_request_is_undelivered_until_the_broker_has_its_reply(bench: Bench) -> None:
    """After a crash the reply is sent, not computed again; once delivered it is only remembered."""
    journal = bench.journal()
    accept(journal, entry())
    finish(journal, "1", b"reply")
    journal = bench.journal()
    assert journal.pending() == []
    assert journal.undelivered() == [Finished("phone", "1", "1-1", b'{"reply_to":"x"}', b"reply")]
    journal.delivered("phone", "1")
    journal = bench.journal()
    assert journal.undelivered() == []
    assert journal.find("phone", "1") == Known("1-1", finished=True)
    assert wait(lambda then: journal.recall("phone", "1", then)) == b"reply"


def test_boots_are_counted(bench: Bench) -> None:
    """Each opening has a number of its own, so task ids are never used twice."""
    assert [bench.journal().boot() for _ in range(3)] == [1, 2, 3]


def test_the_first_body_wins(bench: Bench) -> None:
    """A duplicate is told at once and from memory, whether the first is queued, running, or finished."""
    journal = bench.journal()
    assert journal.find("phone", "1") is None
    accept(journal, entry())
    assert journal.accept(entry(task="1-2"), lambda error: None) == Known("1-1", finished=False)
    accept(journal, entry(client="tablet", task="1-3"))
    finish(journal, "1", b"reply")
    assert journal.accept(entry(task="1-4"), lambda error: None) == Known("1-1", finished=True)
    journal = bench.journal()
    assert journal.accept(entry(task="2-1"), lambda error: None) == Known("1-1", finished=True)


def test_what_is_forgotten_may_come_again(bench: Bench) -> None:
    """An error that says when to retry leaves no trace."""
    journal = bench.journal()
    accept(journal, entry())
    journal.forget("phone", "1")
    accept(journal, entry(task="1-2"))
    assert [each.task for each in bench.journal().pending()] == ["1-2"]


def test_waiting_writes_are_committed_together(bench: Bench) -> None:
    """While one commit takes its time, those that come meanwhile wait for one further commit, not for one each."""
    journal = bench.journal(sync_delay_s=0.1)
    done = threading.Semaphore(0)
    began = time.monotonic()
    for number in range(200):
        assert journal.accept(entry(str(number)), lambda error: done.release()) is None
    assert time.monotonic() - began < 0.1
    for _ in range(200):
        assert done.acquire(timeout=PATIENCE_S)
    assert time.monotonic() - began < 1.0
    assert len(journal.pending()) == 200


def test_callers_are_told_after_the_commit(bench: Bench) -> None:
    """When `then` is called, another connection can see the request."""
    journal = bench.journal()
    seen = wait(lambda then: journal.accept(entry(), lambda error: then(len(journal.pending()))))
    assert seen == 1


def test_a_caller_that_fails_harms_no_other(bench: Bench) -> None:
    """An exception in `then` is logged, and the journal goes on."""
    journal = bench.journal()

    def broken(error: LLMasOSError | None) -> None:
        raise ValueError("a bug")

    assert journal.accept(entry("1"), broken) is None
    accept(journal, entry("2"))
    assert len(journal.pending()) == 2


def test_a_queue_that_grows_too_long_is_refused(bench: Bench) -> None:
    """A disk that can't keep up pushes back, instead of filling the memory."""
    journal = bench.journal(sync_delay_s=0.3)

    def flood() -> None:
        for number in range(2 * MAX_QUEUED):
            journal.accept(entry(str(number)), lambda error: None)

    with pytest.raises(QueueFull):
        flood()


def test_replies_are_remembered_for_ten_minutes_of_running_time(bench: Bench) -> None:
    """Not a wall clock that jumps, nor the time switched off, ends the memory; ten minutes of running do."""
    journal = bench.journal()
    accept(journal, entry())
    finish(journal, "1", b"reply")
    journal.delivered("phone", "1")
    bench.clock.wall += 10**12
    bench.clock.advance(6 * MINUTE_MS)
    sweep(journal)
    bench.clock.monotonic = 77
    journal = bench.journal()
    bench.clock.advance(3 * MINUTE_MS)
    sweep(journal)
    assert journal.find("phone", "1") is not None
    bench.clock.advance(1 * MINUTE_MS)
    sweep(journal)
    assert journal.find("phone", "1") is None
    accept(journal, entry())


def test_a_reply_that_nobody_has_yet_is_kept(bench: Bench) -> None:
    """However long the broker is away, an accepted request gets its reply."""
    journal = bench.journal()
    accept(journal, entry("1"))
    accept(journal, entry("2"))
    finish(journal, "1", b"reply")
    bench.clock.advance(100 * MINUTE_MS)
    sweep(journal)
    assert [each.id for each in journal.undelivered()] == ["1"]
    assert [each.id for each in journal.pending()] == ["2"]
    assert journal.find("phone", "1") == Known("1-1", finished=True)


def test_the_journal_sweeps_by_itself(bench: Bench) -> None:
    """Nobody has to ask: any write after a minute brings the sweep along."""
    journal = bench.journal()
    accept(journal, entry("1"))
    finish(journal, "1", b"reply")
    journal.delivered("phone", "1")
    bench.clock.advance(11 * MINUTE_MS)
    accept(journal, entry("2"))
    accept(journal, entry("3"))
    assert journal.find("phone", "1") is None


def test_sessions_keep_their_turns_in_order(bench: Bench) -> None:
    """Turns are committed with the reply, and read back from memory and from the disk alike."""
    ask: dict[str, object] = {"role": "user", "content": "hi"}
    answer: dict[str, object] = {"role": "assistant", "content": "ho"}
    journal = bench.journal()
    assert journal.turns("phone", "s") == []
    accept(journal, entry("1"))
    finish(journal, "1", b"reply", Turns("s", [ask, answer]))
    assert journal.turns("phone", "s") == [ask, answer]
    append(journal, "s", ask)
    assert journal.turns("phone", "s") == [ask, answer, ask]
    assert journal.turns("tablet", "s") == []
    assert bench.journal().turns("phone", "s") == [ask, answer, ask]


def test_the_cache_of_sessions_is_bounded_and_agrees_with_the_disk(bench: Bench) -> None:
    """More sessions than are cached, in random order, always read what was written."""
    journal = bench.journal()
    expected: dict[str, list[dict[str, object]]] = {}
    chance = random.Random(4)
    for number in range(300):
        session = str(chance.randrange(50))
        message: dict[str, object] = {"content": str(number)}
        append(journal, session, message)
        expected.setdefault(session, []).append(message)
        look = str(chance.randrange(50))
        assert journal.turns("phone", look) == expected.get(look, [])
    assert len(journal._sessions) <= 32


def test_a_commit_during_a_read_is_not_forgotten(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read from the disk before a commit is not taken for the session's state after it."""
    journal = bench.journal()
    append(journal, "s", {"content": "1"})
    journal = bench.journal()
    read = JournalFile.turns

    def slow(file: JournalFile, session: tuple[str, str]) -> list[dict[str, object]]:
        found = read(file, session)
        append(journal, "s", {"content": "2"})
        return found

    monkeypatch.setattr(JournalFile, "turns", slow)
    journal.turns("phone", "s")
    monkeypatch.undo()
    assert journal.turns("phone", "s") == [{"content": "1"}, {"content": "2"}]


def test_every_commit_is_synchronous(bench: Bench) -> None:
    """No test can cut the power, so that the fsync is asked for is seen by the setting (2 is FULL)."""
    journal = bench.journal()
    assert journal._file._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._file._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_idle_sessions_end(bench: Bench) -> None:
    """A session outlives idleness for `keep_s` of running time, counted from its last turn."""
    journal = bench.journal(keep_s=3600)
    for session in ("old", "new"):
        append(journal, session, {"content": "x"})
        bench.clock.advance(40 * MINUTE_MS)
    sweep(journal)
    assert journal.turns("phone", "old") == []
    assert journal.turns("phone", "new") == [{"content": "x"}]
    bench.clock.advance(21 * MINUTE_MS)
    sweep(journal)
    assert journal.turns("phone", "new") == []


def test_elapsed_time_counts_through_restarts(bench: Bench) -> None:
    """A deadline counts the time switched off, as long as the clock is credible, and never less than was run."""
    journal = bench.journal()
    accept(journal, entry())
    (before,) = journal.pending()
    bench.clock.advance(2_000)
    assert journal.elapsed_ms(before) == 1_999
    bench.clock.wall += 10**9  # the clock is set while the node runs: that is no time passed
    assert journal.elapsed_ms(before) == 1_999
    bench.clock.wall = NOW_MS + 5_000
    bench.clock.monotonic = 0
    journal = bench.journal()
    (after,) = journal.pending()
    assert journal.elapsed_ms(after) == 5_000
    bench.clock.wall = 1_000  # a board without a clock, before the network told the time
    bench.clock.monotonic += 300
    assert 0 <= journal.elapsed_ms(after) <= 2_300


def test_a_damaged_file_is_moved_aside_and_reported(bench: Bench) -> None:
    """The node starts with a new journal, says so, and keeps the old one for whoever wants to look."""
    accept(bench.journal(), entry())
    bench.close()
    bench.path.write_bytes(b"not a database" * 1000)
    journal = bench.journal()
    assert journal.pending() == []
    accept(journal, entry())
    aside = bench.path.with_name("journal.db.corrupt-1")
    assert aside.read_bytes().startswith(b"not a database")
    assert [kind for kind, _ in bench.reports] == ["journal.corrupt"]
    bench.close()
    content = bytearray(bench.path.read_bytes())
    content[4096:] = random.Random(1).randbytes(len(content) - 4096)
    bench.path.write_bytes(content)
    assert bench.journal().pending() == []
    assert bench.path.with_name("journal.db.corrupt-2").exists()


def test_a_newer_journal_is_left_alone(bench: Bench) -> None:
    """An older program does not touch what it does not understand."""
    accept(bench.journal(), entry())
    bench.close()
    connection = sqlite3.connect(bench.path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StoreError, match="newer version"):
        bench.journal()


def test_a_place_that_can_not_be_written_is_a_clear_error(tmp_path: Path) -> None:
    """The path is in the message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="journal"):
        Bench(tmp_path / "file" / "journal.db").journal()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="folder"):
        Bench(tmp_path / "folder").journal()


def test_a_full_disk_refuses_and_recovers(bench: Bench) -> None:
    """Without space requests are refused and forgotten, replies wait in memory; with space again both go on."""
    journal = bench.journal()
    accept(journal, entry("1"))
    size = bench.path.with_name("journal.db-wal").stat().st_size
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))  # writes beyond it fail, as on a full disk
    try:
        error = wait(lambda then: journal.accept(entry("2"), then))
        assert isinstance(error, StoreError)
        assert error.retry_after_ms
        assert journal.find("phone", "2") is None
        error = wait(lambda then: journal.finish("phone", "1", b"reply", then))
        assert isinstance(error, StoreError)
        assert wait(lambda then: journal.recall("phone", "1", then)) == b"reply"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    accept(journal, entry("2"))
    assert [each.id for each in journal.undelivered()] == ["1"]
    assert [each.id for each in journal.pending()] == ["2"]


def test_one_impossible_write_does_not_spoil_its_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a transaction fails, its parts are tried one by one, and only the culprit's caller gets an error."""
    real = JournalFile.accept

    def picky(file: JournalFile, request: Entry) -> None:
        if request.id == "bad":
            raise sqlite3.DataError("too big")
        real(file, request)

    monkeypatch.setattr(JournalFile, "accept", picky)
    journal = bench.journal(sync_delay_s=0.05)
    told: dict[str, LLMasOSError | None] = {}
    done = threading.Semaphore(0)

    def submit(request_id: str) -> None:
        def then(error: LLMasOSError | None) -> None:
            told[request_id] = error
            done.release()

        journal.accept(entry(request_id), then)

    for request_id in ("1", "bad", "2"):
        submit(request_id)
    for _ in range(3):
        assert done.acquire(timeout=PATIENCE_S)
    assert [type(told[each]) for each in ("1", "bad", "2")] == [type(None), StoreError, type(None)]
    assert [each.id for each in journal.pending()] == ["1", "2"]


CHILD = """
import sys, time
from pathlib import Path
from llmasos_edge.services.journal import Entry, Journal

def clock() -> int:
    return int(time.monotonic() * 1000)

journal = Journal(Path(sys.argv[1]), monotonic_ms=clock, wall_ms=clock, report=lambda *report: print(report))
journal.start()
boot = journal.boot()
print("ready", flush=True)
for number in range(100_000):
    name = f"{boot}-{number}"
    entry = Entry("phone", name, name, "chat", b"x" * 500, 1, b"{}", 0)
    journal.accept(entry, lambda error, name=name: error or print("a", name, flush=True))
    if number % 3 == 0:
        journal.finish("phone", name, b"y", lambda error, name=name: error or print("f", name, flush=True))
    time.sleep(0.0002)
"""


def test_nothing_that_was_confirmed_is_lost_by_kill_9(bench: Bench) -> None:
    """Killed at random moments, again and again: each confirmed request and reply is there, and nothing is twice."""
    chance = random.Random(2)
    accepted: set[str] = set()
    finished: set[str] = set()
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(bench.path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.0, 0.25))
        child.kill()
        for line in child.communicate()[0].splitlines(keepends=True):
            kind, _, name = line.partition(" ")
            if not name.endswith("\n"):
                continue  # it was killed while it said so
            name = name.removesuffix("\n")
            {"a": accepted, "f": finished}.get(kind, set()).add(name)
        journal = bench.journal()
        pending = [each.id for each in journal.pending()]
        replied = [each.id for each in journal.undelivered()]
        assert accepted <= {*pending, *replied}
        assert finished <= set(replied)
        assert len({*pending, *replied}) == len(pending) + len(replied)
        bench.close()
    assert len(accepted) > 50
    assert len(finished) > 10
    assert bench.reports == []
