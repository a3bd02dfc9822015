"""Tests of a real worker's saved state: parked and restored elsewhere, behind prefixes that many share."""

from collections.abc import Callable

from llmasos_edge.kernel.hal import (
    Loaded,
    Piece,
    Prepared,
    Report,
    Resized,
    Restored,
)
from llmasos_edge.kernel.memory.extent import Extent
from llmasos_edge.kernel.units import (
    Bytes,
    SegmentId,
    SequenceId,
    Tokens,
)
from tests.integration.worker_rig import EXTENT, Rig


def test_a_parked_task_resumes_elsewhere(rig: Rig) -> None:
    """Its state lies in the memfd, others run, the pool is made anew, with more cells and fewer: the text is that of
    an undisturbed run.
    """
    expected = rig.alone("park", tokens=12)
    task = rig.start("park", tokens=12)
    rig.run(task, decode=5)
    for cells in (2048, 1024, 4096):
        pieces = rig.save(task)
        assert pieces
        rig.alone("between", text="Something else", tokens=3)
        rig.host.resize(Tokens(cells))
        assert rig.wait(Resized).cells == cells
        rig.host.switch_in(task, SequenceId(7), pieces)
        assert rig.wait(Restored).kept == pieces[0].end
        rig.run(task, decode=2)
    rig.grant(task)
    assert rig.finish(task) == [expected]


def test_a_task_whose_state_was_dropped_is_computed_again(rig: Rig) -> None:
    """Without an extent, tokens stay and KV goes; so it is, too, when the extent is too small."""
    expected = rig.alone("drop", tokens=10)
    task = rig.start("drop", tokens=10)
    for extent in (None, Extent(0, 4096)):
        rig.run(task, decode=3)
        if extent is None:
            rig.host.switch_out(task, None)
        else:
            assert rig.save(task, extent=extent) == ()
        rig.host.switch_in(task, SequenceId(3), ())
    rig.grant(task)
    assert rig.finish(task) == [expected]


PREFIX = "You answer in one short sentence, politely, and never about the weather. " * 12


def test_eight_tasks_compute_their_prefix_once(rig: Rig) -> None:
    """They come at once with the same system prompt: one computes it, the others take it, and each says what it says
    alone.
    """
    texts = {f"e{n}": f"{n}?" for n in range(8)}
    expected = [rig.alone(name, text=text, system=PREFIX, tokens=6) for name, text in texts.items()]
    tasks = [
        rig.start(name, n, text=text, system=PREFIX, tokens=6, owner="all")
        for n, (name, text) in enumerate(texts.items())
    ]
    prepared = [e for e in rig.seen if isinstance(e, Prepared) and e.task in tasks]
    shared = prepared[0].shared
    assert {(e.prefix, e.shared) for e in prepared} == {(prepared[0].prefix, shared)}
    assert shared > 150
    number = rig.grant(*tasks)
    assert rig.finish(*tasks) == expected
    assert sorted(rig.progress(task).cached for task in tasks) == [0] + [shared] * 7
    prefilled = sum(e.prefilled for e in rig.seen if isinstance(e, Report) and e.number == number)
    assert prefilled == sum(e.prompt_tokens for e in prepared) - 7 * shared


def test_whose_prefix_it_is(rig: Rig) -> None:
    """The model's own system prompt is everybody's, and so is what an app of the node puts there; a caller's is not."""

    def number(owner: str, system: str = "", *, public: bool = False) -> int:
        task = rig.prepare(f"{owner}{system}{public}", system=system, owner=owner, public=public)
        prefix = rig.wait(Prepared, lambda event: event.task == task).prefix
        rig.host.forget(task)
        return prefix

    assert number("alice") == number("bob") != 0
    assert number("alice", PREFIX) != number("bob", PREFIX)
    assert number("alice", PREFIX, public=True) == number("bob", PREFIX, public=True)
    assert number("alice", PREFIX) != number("alice", PREFIX, public=True)


def test_the_first_of_a_prefix_is_cancelled(rig: Rig) -> None:
    """The next one takes over what it had computed."""
    system = f"First. {PREFIX}"
    expected = rig.alone("next", text="Why?", system=system, tokens=6)
    tasks = [rig.start(name, n, text="Why?", system=system, tokens=6, owner="f") for n, name in enumerate("xyz")]
    rig.grant(*tasks, chunk=32)
    rig.wait(Report, lambda event: event.prefilled >= 32)
    rig.host.forget(tasks[0])
    assert rig.finish(*tasks[1:]) == [expected] * 2
    assert rig.progress(tasks[1]).cached >= 32


def test_pieces_wait_for_the_prefix_before_them(own_rig: Callable[..., Rig]) -> None:
    """In a worker that does not have it: it is computed, through aborted steps too, and they are restored behind it."""
    rig = own_rig()
    rig.wait(Loaded)
    expected = rig.alone("behind", system=PREFIX, tokens=12)
    task = rig.start("behind", system=PREFIX, tokens=12)
    rig.run(task, decode=5)
    shared = next(e.shared for e in rig.seen if isinstance(e, Prepared) and e.task == task)
    (piece,) = rig.save(task)
    assert piece.start == shared
    rig.alone("other", text="many words " * 900, tokens=1)
    rig.host.resize(Tokens(1024))  # the prefix is less than a quarter
    rig.wait(Resized)
    rig.host.resize(Tokens(512))  # and now more
    rig.wait(Resized)
    rig.host.switch_in(task, SequenceId(2), (piece,))
    rig.grant(task, chunk=32, decode=0)
    rig.host.interrupt()
    assert rig.wait(Restored) == Restored(task, piece.end)
    rig.wait(Report, lambda event: event.idle)
    prefilled = sum(e.prefilled for e in rig.seen if isinstance(e, Report))
    rig.grant(task)
    assert rig.finish(task) == [expected]
    assert prefilled >= shared
    assert rig.progress(task).cached == 0


def test_pieces_of_a_forgotten_task_are_told_of(rig: Rig) -> None:
    """Though their turn never came: they are as good as they were."""
    system = f"Forgotten. {PREFIX}"
    task = rig.start("pieces", system=system, tokens=3)
    shared = next(e.shared for e in rig.seen if isinstance(e, Prepared) and e.task == task)
    rig.host.switch_out(task, None)
    rig.host.switch_in(task, SequenceId(0), (Piece(SegmentId(4), EXTENT, Bytes(8192), shared, Tokens(999), 0),))
    rig.host.forget(task)
    assert rig.wait(Restored) == Restored(task, Tokens(999))
