"""Tests of how a request becomes a submission: defaults, ceilings, the app's values and the caller's."""

import msgspec
import pytest

from llmasos_edge.api.requests import Accepting
from llmasos_edge.engine.protocol import Message, Program
from llmasos_edge.errors import BadRequest
from llmasos_edge.ipc.messages import Generation, decode_request
from llmasos_edge.kernel.task import Submission
from llmasos_edge.kernel.units import ClientId, Priority, TaskId
from llmasos_edge.services.security import Caller

APP: dict[str, object] = {
    "messages": [{"role": "user", "content": "in"}],
    "class": "critical",
    "max_tokens": 80,
    "temperature": 0,
}
LAMP = Caller(ClientId("lamp"), Priority.NORMAL)


def submitted(
    op: str,
    body: bytes,
    *,
    deadline_ms: int | None = None,
    app: dict[str, object] = APP,
    system: str | None = None,
    caller: Caller = LAMP,
) -> Submission:
    request = decode_request(op, body)
    assert isinstance(request, Generation)
    accepting = Accepting("first", lambda _name, _given: app, lambda _name: system)
    return accepting.submission(request, caller, TaskId("1-1"), 7, deadline_ms, 1)


def program(submission: Submission) -> Program:
    assert isinstance(submission.program, Program)
    return submission.program


def test_defaults() -> None:
    """The node's first model, class normal, 256 tokens, temperature 0.7, and the seed that was resolved."""
    submission = submitted("generate", b'{"prompt": "x"}')
    assert (submission.model, submission.priority, submission.max_tokens) == ("first", Priority.NORMAL, 256)
    assert (submission.deadline_ms, submission.session, submission.app) == (None, None, None)
    sampling = program(submission).sampling
    assert (sampling.temperature, sampling.seed, sampling.stop) == (0.7, 7, ())
    assert program(submission).owner == "lamp"


def test_what_is_said_holds_up_to_the_ceiling() -> None:
    """Each field arrives; a class above the ceiling is capped; temperature 0 is not taken for none."""
    body = b'{"messages": [{"role": "user", "content": "hi"}], "class": "critical", "temperature": 0, "stop": "a"}'
    submission = submitted("chat", body, deadline_ms=50)
    assert (submission.priority, submission.deadline_ms) == (Priority.NORMAL, 50)
    assert program(submission).messages == (Message("user", "hi"),)
    assert (program(submission).sampling.temperature, program(submission).sampling.stop) == (0, ("a",))


def test_a_run_has_the_apps_values_and_the_callers_over_them() -> None:
    """The app's own class is capped by the caller's ceiling too; computed prefixes are shared by the app's runs."""
    submission = submitted("run", b'{"app": "a", "input": "x", "max_tokens": 5}')
    assert (submission.app, submission.max_tokens, submission.priority) == ("a", 5, Priority.NORMAL)
    assert program(submission).sampling.temperature == 0
    assert program(submission).owner == submission.client


HELPFUL: dict[str, object] = {
    "messages": [{"role": "system", "content": "Be helpful."}, {"role": "user", "content": "in"}]
}


@pytest.mark.parametrize(
    ("system", "body", "public"),
    [
        ("Be helpful.", HELPFUL, True),
        (None, HELPFUL, False),
        ("Be helpful to Bob.", HELPFUL, False),
        ("Be helpful.", APP, False),
    ],
)
def test_an_apps_constant_system_prompt_is_everybodys(
    system: str | None, body: dict[str, object], public: bool
) -> None:
    """Not one that an input went into, whoever runs the app; and never what a caller says is one."""
    run = submitted("run", b'{"app": "a", "input": "x"}', app=body, system=system)
    assert program(run).public == public
    said = msgspec.json.encode(HELPFUL)
    assert not program(submitted("chat", said, system="Be helpful.")).public
    own = Caller(ClientId("node"), Priority.NORMAL, app="a")
    assert program(submitted("chat", said, system=system, caller=own)).public == (system == "Be helpful.")


def test_an_app_that_makes_no_request_is_named() -> None:
    """What the app's template gives is checked like everybody's."""
    with pytest.raises(BadRequest, match="app 'a'"):
        submitted("run", b'{"app": "a", "input": "x"}', app={"messages": [{"role": "user"}]})
