"""Tests of the picture: well-formed, everything inside its frame, and of a size that a browser can show."""

from xml.etree import ElementTree as ET

import pytest
from msgspec.structs import replace

from llmasos_edge.kernel.units import Priority
from llmasos_edge.services.workload import Workload
from llmasos_edge.simulate.generate import Recipe, generate
from llmasos_edge.simulate.picture import COLOURS, LEFT, PLOT, WIDTH, picture, waiting
from llmasos_edge.simulate.replay import Life, Replay, Replayed, Seat

SVG = "{http://www.w3.org/2000/svg}"


def drawn(workload: Workload, *replays: Replayed) -> ET.Element:
    return ET.fromstring(picture(workload, replays))


def boxes(root: ET.Element) -> list[ET.Element]:
    return [each for each in root.iter(f"{SVG}rect") if float(each.get("x", "0")) >= LEFT and each.get("y") != "46"]


def test_every_seat_is_a_bar_of_its_class() -> None:
    """With its task's number, a panel for each policy, and a legend."""
    workload = generate(Recipe(tasks=20))
    replays = [Replay(workload, policy).run() for policy in ("fcfs", "priority")]
    root = drawn(workload, *replays)
    assert len(boxes(root)) == sum(len(each.seats) for each in replays)
    words = {each.text for each in root.iter(f"{SVG}text")}
    assert {"fcfs", "priority", "critical", "batch", "waiting", "smollm2-135m", "0 s"} <= words
    assert {str(life.number) for life in replays[0].lives if life.turnaround_ms > 2000} <= words
    for box in boxes(root):
        assert float(box.get("x", "")) + float(box.get("width", "")) <= LEFT + PLOT + 1
    assert root.get("width") == str(WIDTH)


def crowd(tasks: int) -> Replayed:
    """One after another on 16 sequences, one of a hundred urgent."""
    kinds = [Priority.NORMAL if number % 100 else Priority.CRITICAL for number in range(tasks)]
    lives = [Life(n, "c", kind, n * 10, n * 10 + 160, 0, 5, 0, 10, "ok") for n, kind in enumerate(kinds)]
    seats = [Seat("smollm2-135m", n % 16, n * 10, n * 10 + 160, n, "c", kind) for n, kind in enumerate(kinds)]
    return Replayed("priority", lives, seats, 0, 0, 0, 0, 0)


def test_100_000_tasks_are_drawn_by_what_each_column_saw_most_of() -> None:
    """A sequence that is always in use is one bar, and the file stays small."""
    workload = generate(Recipe(tasks=1))
    root = drawn(workload, crowd(100_000))
    assert len(boxes(root)) == 16
    assert len(picture(workload, [crowd(100_000)])) < 20_000


def test_names_from_a_file_are_escaped() -> None:
    """A client may be called anything."""
    workload = generate(Recipe(tasks=3))
    strange = [replace(each, client="<&>") for each in workload.arrivals]
    root = drawn(workload, Replay(Workload(workload.header, strange), "fcfs").run())
    assert any("<&>" in (each.text or "") for each in root.iter(f"{SVG}title"))


def test_waiting_counts_who_has_no_sequence() -> None:
    """From the arrival to the seat, and between two seats."""
    life = Life(1, "c", Priority.BATCH, 0, 1000, 0, 5, 0, 10, "ok")
    seats = [Seat("m", 0, *span, 1, "c", Priority.BATCH) for span in ((200, 400), (600, 1000))]
    curves = waiting(Replayed("fcfs", [life], seats, 0, 0, 0, 0, 0), PLOT / 1000)
    per_second = curves[Priority.BATCH]
    assert [per_second[int(PLOT * at)] for at in (0.1, 0.3, 0.5, 0.7)] == [1, 0, 1, 0]
    assert set(curves) == set(COLOURS)


@pytest.mark.parametrize("tasks", [0, 1])
def test_next_to_nothing_can_be_drawn(tasks: int) -> None:
    """An axis, and no bars."""
    workload = generate(Recipe(tasks=1))
    assert len(boxes(drawn(workload, crowd(tasks)))) == tasks
