"""Tests of the kernel's thread: what is posted happens there, in order; timers; errors; a bug ends the node."""

import threading
import time

import pytest

from llmasos_edge.daemon.kernel_loop import KernelLoop, monotonic_ms
from llmasos_edge.engine.simulated import SimulatedModel
from llmasos_edge.engine.simulation import Simulation
from llmasos_edge.errors import BadRequest, Panic
from llmasos_edge.kernel.hal import Limits
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId, Tokens


def started(broken: list[BaseException], timers: list[object] | None = None) -> KernelLoop:
    loop = KernelLoop(broken.append)
    model = SimulatedModel(Limits(Tokens(512), Tokens(512), 1, Bytes(1)))
    loop.start(Simulation({ModelId("m"): model}).dispatcher, timers or [])  # type: ignore[arg-type]
    return loop


def test_posts_happen_in_order_on_one_thread() -> None:
    """From whatever thread they come."""
    broken: list[BaseException] = []
    loop = started(broken)
    seen: list[tuple[int, str]] = []
    for number in range(100):
        loop.post(lambda number=number: seen.append((number, threading.current_thread().name)))  # type: ignore[misc]
    loop.ask(lambda: None)
    assert seen == [(number, "kernel") for number in range(100)]
    loop.stop()
    assert broken == []


def test_a_refusal_without_a_caller_is_logged_and_the_loop_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """Errors of callers are no bugs of the kernel."""
    broken: list[BaseException] = []
    loop = started(broken)

    def refuse() -> None:
        raise BadRequest("no")

    loop.post(refuse)
    loop.ask(lambda: None)
    loop.stop()
    assert broken == []
    assert "without a caller" in caplog.text
    caplog.clear()


def test_a_broken_invariant_is_told_and_ends_the_loop() -> None:
    """Whoever made it decides what then happens to the process."""
    broken: list[BaseException] = []
    loop = started(broken)

    def panic() -> None:
        raise Panic("test: it is broken")

    loop.post(panic)
    loop.stop()
    assert [str(error) for error in broken] == ["test: it is broken"]


def test_timers_are_called_when_they_are_due_and_not_before() -> None:
    """The thread sleeps until the next moment."""
    due = [Milliseconds(monotonic_ms() + 30)]
    fired: list[int] = []
    done = threading.Event()

    def fire(now: Milliseconds) -> None:
        fired.append(now - due[0])
        due[0] = Milliseconds(now + 1_000_000)
        done.set()

    broken: list[BaseException] = []
    began = time.process_time()
    loop = started(broken, [(lambda: due[0], fire)])
    assert done.wait(10)
    loop.stop()
    assert len(fired) == 1
    assert fired[0] >= 0
    assert time.process_time() - began < 1
