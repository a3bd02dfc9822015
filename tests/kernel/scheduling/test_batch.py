"""Tests of the composition of a quantum, and of the measured rates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.kernel.hal import Quantum, Slot
from llmasos_edge.kernel.scheduling.batch import BATCH, CHUNK_MIN, Rates, Targets, compose
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds, Priority, Tokens
from tests.kernel.nodes import tcb

TARGETS = Targets(quantum_ms=Milliseconds(200), decode_ms=Milliseconds(150))


def standing(order: int, prompt: int, computed: int, generated: int = 0, priority: Priority = Priority.NORMAL) -> Task:
    task = tcb(order, priority, prompt=prompt)
    task.computed, task.generated = Tokens(computed), Tokens(generated)
    return task


def test_a_quantum() -> None:
    """The most urgent first; each gets its pending tokens, and an equal share of the free cells to grow."""
    decoding = standing(1, prompt=10, computed=14, generated=5)
    urgent = standing(2, prompt=40, computed=0, priority=Priority.CRITICAL)
    quantum = compose(7, [decoding, urgent], 100, Rates(step_ms=10, prefill_ms=2), TARGETS, threads=2)
    slots = (Slot(urgent.id, Tokens(40), Tokens(50), alone=True), Slot(decoding.id, Tokens(1), Tokens(50)))
    assert quantum == Quantum(7, slots, Tokens(70), Milliseconds(200), 2)
    assert (urgent.granted, decoding.granted) == (90, 51)


@pytest.mark.parametrize(
    ("prompt", "priority", "alone"),
    [(75, Priority.INTERACTIVE, True), (76, Priority.INTERACTIVE, False), (75, Priority.NORMAL, False)],
)
def test_a_short_prompt_of_a_higher_class_comes_first(prompt: int, priority: Priority, alone: bool) -> None:
    """If the lower ones wait no longer for it than a step may take; equals decode along with it."""
    decoding = standing(1, prompt=10, computed=14, generated=5)
    newcomer = standing(2, prompt=prompt, computed=0, priority=priority)
    quantum = compose(1, [decoding, newcomer], 400, Rates(step_ms=10, prefill_ms=2), TARGETS, threads=2)
    assert {slot.task: slot.alone for slot in quantum.slots} == {decoding.id: False, newcomer.id: alone}


def test_nobody_is_given_more_than_it_may_generate() -> None:
    """The share ends at max_tokens (256 here)."""
    task = standing(1, prompt=10, computed=259, generated=250)
    quantum = compose(1, [task], 4000, Rates(), TARGETS, threads=1)
    assert quantum.slots[0].decode == 6


def test_nobody_runs() -> None:
    """An empty lease takes the cores away."""
    assert compose(1, [], 4000, Rates(), TARGETS, threads=1).slots == ()


tasks = st.lists(st.tuples(st.integers(1, 500), st.integers(0, 200), st.integers(0, 1000)), max_size=16)


@given(shapes=tasks, spare=st.integers(0, 2000))
def test_allowances_never_exceed_the_pool(shapes: list[tuple[int, int, int]], spare: int) -> None:
    """What all may come to hold is at most what they hold now and what is free."""
    running = [standing(n, prompt, min(prompt, computed), made) for n, (prompt, made, computed) in enumerate(shapes)]
    cells = sum(task.tokens for task in running) + spare
    compose(1, running, cells - sum(task.tokens for task in running), Rates(), TARGETS, threads=1)
    assert sum(task.computed + task.granted for task in running) <= cells


@given(step=st.floats(0.1, 500), prefill=st.floats(0.01, 100), decoding=st.booleans(), prompts=st.integers(0, 4))
def test_a_chunk_keeps_decoding_within_the_target(step: float, prefill: float, decoding: bool, prompts: int) -> None:
    """Where some decode while others prefill, a step takes no longer than the target, or has the smallest chunk."""
    running = [standing(n, prompt=300, computed=0) for n in range(prompts)]
    running += [standing(9, prompt=5, computed=5, generated=1)] if decoding else []
    rates = Rates(step, prefill)
    chunk = compose(1, running, 4000, rates, TARGETS, threads=1).chunk
    assert CHUNK_MIN <= chunk <= BATCH
    if decoding and prompts:
        assert chunk == CHUNK_MIN or rates.expected_ms(1, chunk) <= TARGETS.decode_ms + 1e-6
    else:
        assert chunk == BATCH


@pytest.mark.parametrize(("step", "prefill"), [(8.0, 1.5), (250.0, 40.0)])
def test_rates_come_close_to_what_is_measured(step: float, prefill: float) -> None:
    """After some reports the expectation is right within a tenth."""
    rates = Rates()
    for _ in range(30):
        rates.learn(steps=5, decoded=5, prefilled=0, busy_ms=5 * step)
        rates.learn(steps=2, decoded=0, prefilled=200, busy_ms=2 * step + 200 * prefill)
    assert rates.expected_ms(3, 100) == pytest.approx(3 * step + 100 * prefill, rel=0.1)


def test_a_step_costs_more_for_more_sequences() -> None:
    """As measured for so many; else scaled from the nearest number; before any measurement from one alone."""
    rates = Rates(step_ms=10)
    assert (rates.step(1), rates.step(5)) == (10, 20)
    for _ in range(20):
        rates.learn(steps=4, decoded=4 * 9, prefilled=0, busy_ms=4 * 90)
    assert rates.step(9) == pytest.approx(90)
    assert rates.step(17) == pytest.approx(90 * 5 / 3)
    assert rates.step(1) == pytest.approx(30)


def test_who_decodes_beside_a_prompt_is_not_the_prompts_cost() -> None:
    """Else chunks would get smaller the smaller they are."""
    rates = Rates(step_ms=80.0)
    for _ in range(30):
        rates.learn(steps=1, decoded=15, prefilled=16, busy_ms=80.0 + 16 * 2.5)
    assert rates.prefill_ms == pytest.approx(2.5, rel=0.1)


def test_a_handful_of_prompt_tokens_teaches_nothing() -> None:
    """A report without steps, or with few prompt tokens, is not divided by."""
    rates = Rates(10.0, 2.0)
    rates.learn(0, 0, 0, 50.0)
    rates.learn(1, 1, CHUNK_MIN - 1, 500.0)
    assert rates == Rates(10.0, 2.0)
