"""Tests of a real worker process through its host: leases, interrupts, prompts, and every way to die."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmasos_edge.engine import host as host_module
from llmasos_edge.engine.host import WorkerHost
from llmasos_edge.engine.protocol import (
    Load,
    send,
)
from llmasos_edge.kernel.hal import (
    Died,
    Finished,
    Loaded,
    Prepared,
    Refused,
    Report,
    Slot,
)
from llmasos_edge.kernel.units import (
    Milliseconds,
    ModelId,
    SequenceId,
    TaskId,
    Tokens,
)
from tests.integration.worker_rig import PATIENCE_S, Rig, memfd


def resident(rig: Rig) -> int:
    """Bytes of the worker that are anonymous and resident."""
    lines = Path(f"/proc/{rig.host.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def test_a_task_runs_to_its_limit(rig: Rig) -> None:
    """Text comes in reports, counts are absolute, and the lease ends idle when nothing is left."""
    task = rig.start("limit", tokens=9)
    number = rig.grant(task)
    assert rig.wait(Finished).finish_reason == "length"
    report = rig.wait(Report, lambda event: event.idle)
    assert report.number == number
    progress = [p for e in rig.seen if isinstance(e, Report) for p in e.progress if p.task == task][-1]
    assert progress.generated == 9
    assert rig.text(task)
    rig.host.forget(task)


def test_a_prompt_that_comes_first_holds_up_the_others_for_one_step(rig: Rig) -> None:
    """Its first token is told by a report in which nobody else went on."""
    running, newcomer = rig.start("on", 0, tokens=200), rig.start("bell", 1, text="A bell rings. " * 8, tokens=2)
    rig.grant(running)
    rig.wait(Report, lambda report: any(part.generated for part in report.progress))
    rig.lease(Slot(newcomer, Tokens(200), Tokens(2), alone=True), Slot(running, Tokens(1), Tokens(200)), chunk=16)
    told = rig.wait(Report, lambda report: any(part.task == newcomer for part in report.progress))
    assert (told.steps, [part.task for part in told.progress]) == (1, [newcomer])
    rig.host.forget(running)
    rig.host.forget(newcomer)


def test_sixteen_tasks_in_one_batch_say_what_each_says_alone(rig: Rig) -> None:
    """Batched decoding changes no text."""
    texts = {f"b{n}": f"{n} is a number. Which one?" for n in range(16)}
    expected = [rig.alone(name, text=text, tokens=6) for name, text in texts.items()]
    tasks = [rig.start(name, n, text=text, tokens=6) for n, (name, text) in enumerate(texts.items())]
    rig.grant(*tasks)
    assert rig.finish(*tasks) == expected


def test_prefill_is_cut_into_chunks(rig: Rig) -> None:
    """No step computes more prompt tokens than the lease's chunk."""
    task = rig.start("chunks", text="word " * 95, tokens=1)
    prompt = next(e for e in rig.seen if isinstance(e, Prepared) and e.task == task).prompt_tokens
    number = rig.grant(task, chunk=16)
    rig.finish(task)
    reports = [e for e in rig.seen if isinstance(e, Report) and e.number == number]
    computed = prompt - rig.progress(task).cached
    assert sum(report.prefilled for report in reports) == computed
    assert sum(report.steps for report in reports) == -(-computed // 16)


def test_fewer_threads_are_told_of_at_once(rig: Rig) -> None:
    """At the boundary where the lease is taken, before a step of it: another worker waits for the cores."""
    task = rig.start("threads", tokens=60)
    rig.grant(task, threads=2)
    rig.wait(Report)
    number = rig.grant(task, threads=1)
    told = rig.wait(Report, lambda event: event.number == number)
    assert (told.steps, told.progress, told.idle) == (0, (), False)
    number = rig.grant(task, threads=2)
    assert rig.wait(Report, lambda event: event.number == number).steps, "more threads are nobody's business"
    rig.finish(task)


def test_a_lease_ends_and_the_next_one_goes_on(rig: Rig) -> None:
    """By its allowance or its time, with an idle report; the text is that of an undisturbed run."""
    expected = rig.alone("lease", tokens=12)
    task = rig.start("lease", tokens=12)
    for grant in ({"decode": 2}, {"ms": Milliseconds(0)}, {"decode": 3}):
        number = rig.grant(task, **grant)
        assert rig.wait(Report, lambda event: event.idle).number == number
    rig.grant(task)
    assert rig.finish(task) == [expected]


def test_a_new_lease_replaces_the_old_one_at_a_step_boundary(rig: Rig) -> None:
    """The task that is no longer in it stops; the other one ends; then the first goes on."""
    first, second = rig.start("first", 0, tokens=1500), rig.start("second", 1, tokens=4)
    rig.grant(first)
    rig.wait(Report, lambda event: event.decoded > 0)
    number = rig.grant(second)
    assert rig.wait(Finished).task == second
    idle = rig.wait(Report, lambda event: event.idle)
    assert idle.number == number
    assert not [e for e in rig.seen if isinstance(e, Finished) and e.task == first]
    for task in (first, second):
        rig.host.forget(task)


def test_an_interrupt_finds_the_commands_sent_before_it(rig: Rig) -> None:
    """Again and again, at any moment of a step: the state is parked at once, and the text stays the same."""
    prompt = "A long story about the sea and the wind. " * 20
    expected = rig.alone("interrupt", text=prompt, tokens=8)
    task = rig.start("interrupt", text=prompt, tokens=8)
    for turn in range(25):
        number = rig.grant(task, decode=1 if turn % 2 else 0)
        time.sleep(turn * 0.002)  # the moments of a step are what is tried
        rig.host.switch_in(task, SequenceId(turn % 16), rig.save(task))
        assert not [e for e in rig.seen if isinstance(e, Report) and e.number > number]
    rig.grant(task)
    assert rig.finish(task) == [expected]


def test_an_interrupt_aborts_a_step(rig: Rig) -> None:
    """A step of many tokens is thrown away and said to be; the lease goes on with it afterwards."""
    task = rig.start("abort", text="many words " * 200, tokens=2)
    for _ in range(20):
        rig.grant(task)
        rig.host.interrupt()
        if rig.wait(Report).aborted:
            break
    else:
        pytest.fail("no step was aborted")
    rig.finish(task)


def test_prompts_are_prepared_while_a_step_is_computed(rig: Rig) -> None:
    """The front thread answers before the long prefill beside it is done."""
    task = rig.start("prefill", text="many words " * 700, tokens=1)
    rig.grant(task)
    other = rig.prepare("quick")
    while True:
        event = rig.events.get(timeout=PATIENCE_S)
        rig.seen.append(event)
        assert not isinstance(event, Finished)
        if isinstance(event, Prepared):
            break
    rig.finish(task)
    rig.host.forget(other)


def test_what_is_forgotten_while_it_is_prepared_leaves_nothing(rig: Rig) -> None:
    """Sampler and tokens are freed, whichever thread comes first."""

    large = {"type": "array", "prefixItems": [{"type": "string", "maxLength": 1900}] * 8}  # its sampler: 1 MB

    def cycle(times: int) -> None:
        for n in range(times):
            task = rig.prepare(f"forgotten{n}", format=large, text="word " * 300)
            rig.host.forget(task)
        last = rig.prepare("last")
        rig.wait(Prepared, lambda event: event.task == last)
        rig.host.forget(last)

    cycle(10)
    before = resident(rig)
    for _ in range(4):
        cycle(10)
    assert resident(rig) - before < 10 << 20  # 40 that leak are 40 MB


def test_formats_and_refusals(rig: Rig) -> None:
    """A schema holds the answer of a model that speaks nonsense; what has no grammar is refused by name."""
    task = rig.start("format", format={"enum": ["red", "blue"]}, tokens=20)
    rig.grant(task)
    finished = rig.wait(Finished)
    assert finished.data in ("red", "blue")
    assert finished.error is None
    rig.host.forget(task)
    rig.prepare("refused", format={"type": "string", "pattern": "^(?=a)$"})
    assert rig.wait(Refused).error["code"] == "bad_request"
    rig.host.forget(TaskId("refused"))


def test_the_context_bounds_a_task(own_rig: Callable[..., Rig]) -> None:
    """Whatever `max_tokens` says, prompt and answer together never exceed the context."""
    rig = own_rig(context=64)
    rig.wait(Loaded)
    task = rig.start("bounded", tokens=500)
    prompt = next(e for e in rig.seen if isinstance(e, Prepared)).prompt_tokens
    rig.grant(task)
    rig.wait(Finished)
    progress = [p for e in rig.seen if isinstance(e, Report) for p in e.progress][-1]
    assert prompt + progress.generated == 64


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_death_is_told_once_with_its_signal(own_rig: Callable[..., Rig], kill: signal.Signals) -> None:
    """In the middle of work, and nothing follows it."""
    rig = own_rig()
    rig.wait(Loaded)
    rig.grant(rig.start("doomed", tokens=1500))
    rig.wait(Report)
    os.kill(rig.host.process.pid, kill)
    rig.host.join()
    events = [rig.events.get_nowait() for _ in range(rig.events.qsize())]
    assert [event for event in events if isinstance(event, Died)] == [Died(ModelId("tiny"), f"killed by {kill.name}")]
    assert isinstance(events[-1], Died)


@pytest.mark.parametrize("content", [b"", b"GGUF" + bytes(range(256)) * 8])
def test_a_file_that_is_no_model_is_told_with_its_reason(
    own_rig: Callable[..., Rig], tmp_path: Path, content: bytes
) -> None:
    """The worker says why before it goes, or its exit does."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    rig = own_rig(path=path)
    event = rig.events.get(timeout=PATIENCE_S)
    assert isinstance(event, Died)
    assert event.why
    rig.host.join()
    assert rig.events.empty()


def test_an_abort_byte_that_a_dead_worker_left_is_cleared(own_rig: Callable[..., Rig]) -> None:
    """The daemon keeps the memory; whoever comes next must not abort each of its steps."""
    rig = own_rig()
    rig.wait(Loaded)
    rig.host.kill()
    rig.host.join()
    os.pwrite(rig.memory, b"\1", 0)
    load = Load(ModelId("tiny"), str(rig.path), 256, 256, 1, "q8_0", False, 1)
    rig.host = WorkerHost(load, rig.memory, rig._program, lambda _model, event: rig.events.put(event))
    assert os.pread(rig.memory, 1, 0) == b"\0"


def test_a_stopped_worker_tells_that_it_is_gone_and_gives_everything_back(own_rig: Callable[..., Rig]) -> None:
    """In mid-answer, twice, and after the end: Died is the last that is heard; no process, thread or file is left."""
    rig = own_rig()
    rig.wait(Loaded)
    rig.grant(rig.start("stopped", tokens=1500))
    rig.host.stop()
    rig.host.stop()
    rig.host.join()
    rig.host.stop()
    assert not rig.host.alive
    heard = [rig.events.get_nowait() for _ in range(rig.events.qsize())]
    assert [event for event in heard if isinstance(event, Died)] == heard[-1:]


def test_a_worker_that_hangs_is_stopped_too(own_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it reads nothing, and the sender thread waits for it in the middle of a message."""
    monkeypatch.setattr(host_module, "EXIT_S", 0.2)
    rig = own_rig()
    rig.wait(Loaded)
    rig.host.process.send_signal(signal.SIGSTOP)
    rig.prepare("large", text="x" * 2_000_000)
    rig.host.stop()
    rig.host.join()
    assert rig.host.process.returncode == -signal.SIGKILL


def test_a_worker_is_confined_before_it_begins(cut: Path) -> None:
    """Whoever confines it hears of its process once, and once more when that is gone, however it ended."""
    said: list[str] = []

    def confine(pid: int) -> Callable[[], None]:
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        said.append("begins" if parent == str(os.getpid()) else "a stranger")
        return lambda: said.append("gone" if not Path(f"/proc/{pid}").exists() else "still there")

    load = Load(ModelId("tiny"), str(cut), 256, 256, 1, "q8_0", False, 1)
    memory = memfd()
    host = WorkerHost(load, memory, lambda _task: pytest.fail("no task"), lambda *_: None, confine=confine)
    before = list(said)
    host.kill()
    host.join()
    os.close(memory)
    assert (before, said) == (["begins"], ["begins", "gone"])


def test_a_worker_goes_with_its_daemon(cut: Path) -> None:
    """The daemon's end of the socket closes, while the model is loaded or later: the worker ends by itself."""
    ours, theirs = socket.socketpair()
    memory = memfd()
    worker = subprocess.Popen(
        [sys.executable, "-m", "llmasos_edge.engine.worker", str(theirs.fileno()), str(memory)],
        pass_fds=(theirs.fileno(), memory),
    )
    theirs.close()
    os.close(memory)
    send(ours, Load(ModelId("tiny"), str(cut), 256, 256, 1, "q8_0", False, 1))
    assert ours.recv(1)
    ours.close()
    assert worker.wait(PATIENCE_S) == 0
