"""A ticket: one accepted request between its receipt and its reply, and those who wait for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmasos_edge.engine.protocol import Message
from llmasos_edge.errors import Internal
from llmasos_edge.ipc.messages import (
    Accepted,
    ErrorReply,
    OkReply,
    Output,
    Timing,
    Usage,
    class_name,
)
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds, TaskId
from llmasos_edge.services.security import Caller

Reply = OkReply | ErrorReply
Post = Callable[[Callable[[], object]], None]  # have it called on the kernel's thread


class Waiter(Protocol):
    """Somebody who waits for a task. Called on the kernel's or the journal's thread; must not block."""

    def accepted(self, accepted: Accepted) -> None: ...

    def delta(self, text: Sequence[str], attempt: int) -> None:
        """What has been added to the answer, token by token."""

    def reply(self, reply: Reply, encoded: bytes) -> None: ...


@dataclass(slots=True, eq=False)
class Ticket:
    """`durable`: it is journaled, so its reply waits for the disk. `acks` are called once it is safe."""

    caller: Caller
    id: str
    task: TaskId
    messages: tuple[Message, ...]  # the new turn, for the session
    durable: bool
    waiters: list[Waiter] = field(default_factory=list)
    acks: list[Callable[[], None]] = field(default_factory=list)
    local: bool = False  # its reply stays on the node: there is no broker to acknowledge it
    safe: bool = False  # the journal has it


def reply_of(ticket_id: str, node: str, task: Task, now: Milliseconds) -> Reply:
    """The final reply of a task that has ended."""
    outcome = task.outcome
    if outcome is None:
        return ErrorReply(id=ticket_id, task=task.id, node=node, error=Internal("the task has no outcome").wire())
    if outcome.error is not None:
        return ErrorReply(id=ticket_id, task=task.id, node=node, error=outcome.error.wire())
    ended = task.ended_ms or now
    first_run = ended if task.first_run_ms is None else task.first_run_ms
    first_token = ended if task.first_token_ms is None else task.first_token_ms
    output = Output(text="".join(task.text), finish_reason="length" if outcome.finish_reason == "length" else "stop")
    if outcome.data is not None:
        output = Output(text=output.text, finish_reason=output.finish_reason, data=outcome.data)
    return OkReply(
        id=ticket_id,
        task=task.id,
        node=node,
        output=output,
        usage=Usage(
            prompt_tokens=task.prompt_tokens, cached_tokens=task.cached_tokens, completion_tokens=task.generated
        ),
        timing=Timing(
            queued_ms=first_run - task.submitted_ms,
            first_token_ms=first_token - task.submitted_ms,
            total_ms=ended - task.submitted_ms,
            preemptions=task.preemptions,
        ),
        klass=class_name(task.priority),
    )
