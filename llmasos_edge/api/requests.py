"""From a request to a submission: defaults, the class ceiling, the seed, and the program that an engine runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from llmasos_edge.engine.protocol import Message, Program, Sampling, system_part
from llmasos_edge.errors import BadRequest
from llmasos_edge.ipc.messages import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_PRIORITY,
    DEFAULT_TEMPERATURE,
    ChatRequest,
    GenerateRequest,
    Generation,
    RunRequest,
)
from llmasos_edge.kernel.task import Submission
from llmasos_edge.kernel.units import Milliseconds, ModelId, SessionId, TaskId, Tokens
from llmasos_edge.services.security import Caller

Expand = Callable[[str, str | dict[str, object]], dict[str, object]]  # app, input -> the body of a chat request
System = Callable[[str], str | None]  # app -> its system prompt, if that is the same for everyone
_SAMPLING: Final = ("top_p", "top_k", "min_p")


@dataclass(frozen=True, slots=True)
class Accepting:
    """What a request becomes a submission with: the node's first model, its apps, and what was decided before."""

    default_model: str
    expand: Expand
    system: System

    def submission(
        self, request: Generation, caller: Caller, task: TaskId, seed: int, deadline_ms: int | None, attempt: int
    ) -> Submission:
        """Raises UnknownApp and BadRequest (an app's input)."""
        app = request.app if isinstance(request, RunRequest) else caller.app
        if isinstance(request, RunRequest):
            request = _merged(request, self.expand(request.app, request.input))
        program = _program(request, seed, caller.client)
        if app and (system := self.system(app)) is not None:
            public = system_part(program.messages or ()) == (Message("system", system),)
            program = msgspec.structs.replace(program, public=public)
        limit = request.deadline_ms if deadline_ms is None else deadline_ms
        return Submission(
            client=caller.client,
            model=ModelId(request.model or self.default_model),
            program=program,
            priority=caller.cap(DEFAULT_PRIORITY if request.priority is None else request.priority),
            max_tokens=Tokens(request.max_tokens or DEFAULT_MAX_TOKENS),
            deadline_ms=None if limit is None else Milliseconds(limit),
            session=None if request.session is None else SessionId(request.session),
            turn=program.messages is not None,
            app=app,
            task=task,
            attempt=attempt,
        )


def _merged(request: RunRequest, body: Mapping[str, object]) -> ChatRequest:
    """The app's own values, overridden by what the caller said."""
    said = {key: value for key, value in msgspec.to_builtins(request).items() if value is not None}
    said = {key: value for key, value in said.items() if key not in ("app", "input")}
    try:
        return msgspec.convert({**body, **said}, ChatRequest)
    except msgspec.ValidationError as error:
        raise BadRequest(f"app {request.app!r}: {error}") from error


def _program(request: Generation, seed: int, owner: str) -> Program:
    temperature = DEFAULT_TEMPERATURE if request.temperature is None else request.temperature
    chosen = {name: getattr(request, name) for name in _SAMPLING if getattr(request, name) is not None}
    sampling = Sampling(temperature=temperature, seed=seed, stop=request.stops, **chosen)
    messages = None
    if isinstance(request, ChatRequest):
        messages = tuple(Message(message.role, message.content) for message in request.messages)
    return Program(
        sampling=sampling,
        max_tokens=request.max_tokens or DEFAULT_MAX_TOKENS,
        messages=messages,
        prompt=request.prompt if isinstance(request, GenerateRequest) else None,
        format=request.format,
        owner=owner,
    )
