"""The contract of every policy: what it decides is possible, it settles, and nobody waits for nothing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.kernel.scheduling.classes import OVERDUE_MS
from llmasos_edge.kernel.scheduling.policies import POLICIES
from llmasos_edge.kernel.scheduling.scheduler import Admit, Keep, Preempt
from llmasos_edge.kernel.scheduling.shares import TURN_MS
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Milliseconds, Priority, SequenceId
from tests.kernel.nodes import running, tcb
from tests.kernel.scheduling.rooms import FakeRoom, queue

SEQUENCES, CELLS = 4, 200
every_policy = pytest.mark.parametrize("name", POLICIES)
BY_CLASS = ("priority", "deadline")
ROTATING = ("round-robin", "fair-share")
shapes: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict[str, Any],
    priority=st.sampled_from(Priority),
    prompt=st.integers(1, CELLS),
    preemptions=st.integers(0, 5),
    client=st.sampled_from("abc"),
    deadline_at=st.one_of(st.none(), st.integers(0, 90_000)),
    left_ms=st.floats(0, 9000),
)
rooms = st.builds(
    FakeRoom,
    sequences=st.just(SEQUENCES),
    cells=st.just(CELLS),
    counters=st.dictionaries(st.sampled_from("abc"), st.integers(0, 9000)),
    debts=st.dictionaries(
        st.sampled_from([each for each in Priority if each is not Priority.CRITICAL]), st.floats(0, 1600)
    ),
)


@every_policy
@given(room=rooms, wanted=st.lists(st.tuples(shapes, st.booleans()), max_size=12), now=st.integers(0, 200_000))
def test_decisions_are_possible_and_come_to_an_end(
    name: str, room: FakeRoom, wanted: list[tuple[dict[str, Any], bool]], now: int
) -> None:
    """Carried out one after another: an Admit fits, a Preempt makes way for one that then fits and takes the place of
    those it may, Keep comes soon, and an idle context is never kept empty while somebody is ready.
    """
    policy, at = POLICIES[name](), Milliseconds(now)
    room.running = []
    made = [tcb(number, **shape) for number, (shape, _) in enumerate(wanted)]
    for task, (_, inside) in zip(made, wanted, strict=True):
        if inside and room.can_seat(task):
            room.running.append(running(task, task.order))
    known = {task.id: task for task in made}
    ready = queue(*(task for task in made if task.state is State.READY), room=room, order=policy)
    for _ in range(4 * len(made) + 1):
        decision = policy.next(ready, list(room.running), room, at)
        match decision:
            case Keep():
                assert room.running or not len(ready)
                return
            case Admit():
                admitted = known[decision.task]
            case Preempt():
                admitted = known[decision.by]
                for victim in (known[each] for each in decision.victims):
                    assert may_lose_to(name, victim, admitted, room, at)
                    leave(victim, room, at)
                    ready.put(victim)
        assert admitted in list(ready)
        assert room.can_seat(admitted)
        ready.remove(admitted)
        admitted.move(State.RUNNING, at)
        admitted.sequence = SequenceId(admitted.order)
        room.running.append(admitted)
    pytest.fail("the policy never settles")


def may_lose_to(name: str, victim: Task, other: Task, room: FakeRoom, now: Milliseconds) -> bool:
    """By class: only to a higher one, to one that is owed a turn, or to an equal that is overdue. Rotating: after a
    quantum, and among clients to one that was served less. Else never.
    """
    if name in BY_CLASS:
        owed = room.owed(other.priority) >= TURN_MS and victim.priority is not Priority.CRITICAL
        overdue = victim.priority is other.priority and now - other.ready_since >= OVERDUE_MS
        return victim.priority < other.priority or owed or overdue
    behind = name == "round-robin" or room.served(other.submission.client) < room.served(victim.submission.client)
    return name in ROTATING and victim.this_run_ms(now) >= room.quantum_ms and behind


def leave(task: Task, room: FakeRoom, now: Milliseconds) -> None:
    room.running.remove(task)
    task.preemptions += 1
    task.sequence = None
    task.move(State.READY, now)


@every_policy
def test_the_same_question_has_the_same_answer(name: str) -> None:
    """A policy keeps nothing in mind that a decision changes."""
    policy = POLICIES[name]()
    inside = running(tcb(1, Priority.BATCH))
    ready, room = queue(tcb(2), tcb(3, Priority.CRITICAL)), FakeRoom(1, running=[inside])
    first = policy.next(ready, [inside], room, Milliseconds(0))
    assert policy.next(ready, [inside], room, Milliseconds(0)) == first


@every_policy
@given(room=rooms, wanted=st.lists(shapes, min_size=1, max_size=12))
def test_a_position_is_the_same_before_and_after_the_task_is_put_there(
    name: str, room: FakeRoom, wanted: list[dict[str, Any]]
) -> None:
    """Nobody stands behind more than there are; and who is added to a queue is told the place that it then has."""
    policy, last = POLICIES[name](), tcb(len(wanted), **wanted[-1])
    ready = queue(*(tcb(number, **shape) for number, shape in enumerate(wanted)), room=room, order=policy)
    told = policy.position(last, ready, room)
    assert 0 <= told <= len(ready)
    ready.put(last)
    assert policy.position(last, ready, room) == told


@pytest.mark.parametrize("name", ["fcfs", "sjf", "round-robin", "deadline"])
@given(wanted=st.lists(shapes, min_size=1, max_size=12))
def test_positions_are_the_order_in_which_tasks_are_admitted(name: str, wanted: list[dict[str, Any]]) -> None:
    """Where it does not depend on what is served meanwhile."""
    policy, room = POLICIES[name](), FakeRoom(100)
    made = [tcb(number, **shape) for number, shape in enumerate(wanted)]
    ready = queue(*made, room=room, order=policy)
    told = {task.id: policy.position(task, ready, room) for task in made}
    for place in range(len(made)):
        decision = policy.next(ready, list(room.running), room, Milliseconds(0))
        assert isinstance(decision, Admit)
        assert told[decision.task] == place
        task = next(each for each in made if each.id == decision.task)
        ready.remove(task)
        room.running.append(running(task))
