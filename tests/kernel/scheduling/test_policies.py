"""The contract of every policy: what it decides is possible, it settles, and nobody waits for nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.kernel.scheduling.policies import POLICIES
from llmasos_edge.kernel.scheduling.scheduler import Admit, Keep, Preempt
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.units import Milliseconds, Priority, SequenceId
from tests.kernel.nodes import running, tcb
from tests.kernel.scheduling.rooms import FakeRoom, queue

SEQUENCES, CELLS = 4, 200
every_policy = pytest.mark.parametrize("name", POLICIES)
tasks = st.lists(
    st.tuples(st.sampled_from(Priority), st.integers(1, CELLS), st.integers(0, 5), st.booleans()), max_size=12
)


@every_policy
@given(shapes=tasks, now=st.integers(0, 200_000))
def test_decisions_are_possible_and_come_to_an_end(
    name: str, shapes: list[tuple[Priority, int, int, bool]], now: int
) -> None:
    """Carried out one after another: an Admit fits, a Preempt makes way for a strictly higher class that then fits,
    Keep comes soon, and an idle context is never kept empty while somebody is ready.
    """
    policy, at = POLICIES[name](), Milliseconds(now)
    made = [tcb(n, each, prompt=prompt, preemptions=p) for n, (each, prompt, p, _) in enumerate(shapes)]
    room = FakeRoom(SEQUENCES, CELLS)
    for task, (*_, inside) in zip(made, shapes, strict=True):
        if inside and room.can_seat(task):
            room.running.append(running(task, task.order))
    known = {task.id: task for task in made}
    ready = queue(*(task for task in made if task.state is State.READY))
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
                    assert victim.priority < admitted.priority
                    leave(victim, room, at)
                    ready.put(victim)
        assert admitted in list(ready)
        assert room.can_seat(admitted)
        ready.remove(admitted)
        room.running.append(running(admitted, admitted.order))
    pytest.fail("the policy never settles")


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
    inside.sequence = SequenceId(0)
    ready, room = queue(tcb(2), tcb(3, Priority.CRITICAL)), FakeRoom(1, running=[inside])
    first = policy.next(ready, [inside], room, Milliseconds(0))
    assert policy.next(ready, [inside], room, Milliseconds(0)) == first
