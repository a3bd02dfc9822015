"""Tests of predicted lengths."""

from llmasos_edge.kernel.scheduling.lengths import REMEMBERED, Lengths
from llmasos_edge.kernel.task import Submission, Task
from llmasos_edge.kernel.units import ClientId, Milliseconds, Priority, TaskId, Tokens
from tests.kernel.nodes import M


def submission(client: str = "c", app: str | None = None, most: int = 256) -> Submission:
    return Submission(ClientId(client), M, None, app=app, max_tokens=Tokens(most))


def ended(given: Submission, generated: int) -> Task:
    task = Task(TaskId("1-1"), given, 1, Milliseconds(0), None, Priority.NORMAL)
    task.generated = Tokens(generated)
    return task


def test_before_anything_is_known_it_is_what_a_task_may_generate() -> None:
    """Nobody's answer is taken for shorter than it may be."""
    assert Lengths().predict(submission(most=77)) == 77


def test_each_app_and_client_has_an_average_that_follows_the_newest() -> None:
    """Who is new gets that of all."""
    lengths = Lengths()
    for _ in range(20):
        lengths.learn(ended(submission("short"), 10))
        lengths.learn(ended(submission("short", app="long"), 200))
    assert lengths.predict(submission("short")) == 10
    assert lengths.predict(submission("short", app="long")) == 200
    assert 10 < lengths.predict(submission("new")) < 200
    for _ in range(20):
        lengths.learn(ended(submission("short"), 50))
    assert lengths.predict(submission("short")) == 50


def test_a_prediction_is_within_bounds() -> None:
    """One token at least, and no more than the task may generate."""
    lengths = Lengths()
    lengths.learn(ended(submission(), 0))
    assert lengths.predict(submission()) == 1
    lengths.learn(ended(submission("b"), 200))
    assert lengths.predict(submission("b", most=20)) == 20


def test_who_was_not_here_for_long_is_forgotten() -> None:
    """So that names that come and go take no memory."""
    lengths = Lengths()
    lengths.learn(ended(submission("first"), 100))
    for number in range(REMEMBERED):
        lengths.learn(ended(submission(f"c{number}"), 10))
    assert lengths.predict(submission("first")) == 10
    assert lengths.predict(submission("c0")) == 10
