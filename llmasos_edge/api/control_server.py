"""Calls that come over the control socket: the operator's."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from llmasos_edge.api.calls import CALLS, Calls, Context
from llmasos_edge.api.door import Arrival, Door
from llmasos_edge.api.ticket import Post, Reply
from llmasos_edge.errors import BadRequest, LLMasOSError, UnknownTask, from_wire
from llmasos_edge.ipc.control import Call
from llmasos_edge.ipc.messages import Accepted, ErrorReply, Generation, decode_request
from llmasos_edge.kernel.trace import Trace, TraceEvent
from llmasos_edge.kernel.units import TaskId
from llmasos_edge.services.journal import Entry, Journal
from llmasos_edge.services.security import Security

T = TypeVar("T")


class Submit(msgspec.Struct, forbid_unknown_fields=True):
    op: str
    body: dict[str, object]
    detach: bool = False


class Wait(msgspec.Struct, forbid_unknown_fields=True):
    task: str


class Dmesg(msgspec.Struct, forbid_unknown_fields=True):
    follow: bool = False


class CallWaiter:
    """The one at the other end of a call."""

    def __init__(self, call: Call, *, detach: bool = False) -> None:
        self._call, self._detach = call, detach

    def accepted(self, accepted: Accepted) -> None:
        if self._detach:
            self._call.result({"task": accepted.task, "position": accepted.position})
        else:
            self._call.event({"accepted": accepted})

    def delta(self, text: Sequence[str], attempt: int) -> None:
        if not self._detach:
            self._call.event({"delta": "".join(text), "attempt": attempt})

    def stands(self, position: int, eta_ms: int) -> None:
        self._call.event({"waits": {"position": position, "eta_ms": eta_ms}})

    def reply(self, reply: Reply, encoded: bytes) -> None:
        shape = msgspec.json.decode(encoded)
        if shape.get("status") == "ok":
            self._call.result(msgspec.Raw(encoded))
        else:
            self._call.error(from_wire(shape["error"]))


class Silent:
    """Nobody waits: a detached task after a restart."""

    def accepted(self, accepted: Accepted) -> None:
        pass

    def delta(self, text: Sequence[str], attempt: int) -> None:
        pass

    def reply(self, reply: Reply, encoded: bytes) -> None:
        pass


class ControlCalls:
    """`handle` is called on a connection's thread, and posts everything to the kernel's thread."""

    def __init__(
        self,
        door: Door,
        calls: Calls,
        journal: Journal,
        security: Security,
        trace: Trace,
        post: Post,
    ) -> None:
        self._door, self._calls, self._journal = door, calls, journal
        self._caller, self._trace, self._post = security.operator(), trace, post
        self._named = 0

    def handle(self, call: Call) -> None:
        """Raises BadRequest for an unknown call or wrong arguments."""
        match call.name:
            case "submit":
                self._submit(call, _convert(call.args, Submit))
            case "wait":
                self._post(partial(self._wait, call, _convert(call.args, Wait).task))
            case "dmesg":
                self._post(partial(self._dmesg, call, _convert(call.args, Dmesg)))
            case name if name in CALLS:
                kind, handler = CALLS[name]
                context = Context(self._calls, call.result, call.error, lambda shape: call.event({"progress": shape}))
                args = _convert(call.args, kind)
                self._post(lambda: _guarded(call, lambda: handler(context, args)))
            case name:
                raise BadRequest(
                    f"call: there is no {name[:64]!r}; the calls are submit, wait, dmesg, {', '.join(CALLS)}"
                )

    def resume(self, entry: Entry) -> None:
        """Take up a detached task of the journal again."""
        request = decode_request(entry.op, entry.body)
        if isinstance(request, Generation):
            arrival = Arrival(
                entry.op, entry.body, request, self._caller, entry.id, Silent(), durable=True, entry=entry, local=True
            )
            self._door.arrive(arrival)

    def _submit(self, call: Call, args: Submit) -> None:
        body = msgspec.json.encode(args.body)
        request = decode_request(args.op, body)
        if not isinstance(request, Generation):
            raise BadRequest(f"op: submit takes chat, generate and run, not {args.op!r}")
        self._post(partial(self._arrive, call, args, body, request))

    def _arrive(self, call: Call, args: Submit, body: bytes, request: Generation) -> None:
        waiter = CallWaiter(call, detach=args.detach)
        self._named += 1
        name = request.id or f"{self._calls.boot}-c{self._named}"
        arrival = Arrival(
            args.op, body, request, self._caller, name, waiter, args.detach, deadline_ms=request.deadline_ms, local=True
        )
        task = self._door.arrive(arrival)
        if task is not None and not args.detach:
            self._calls.standing.follow(task, waiter.stands, self._calls.clock_ms())
            call.on_cancel = lambda: self._post(partial(self._calls.hung_up, task))

    def _wait(self, call: Call, task: str) -> None:
        waiter = CallWaiter(call)
        if self._door.attach(TaskId(task), waiter):
            found = self._calls.task(task)
            if found.text:
                waiter.delta(found.text, found.attempt)
            self._calls.standing.follow(TaskId(task), waiter.stands, self._calls.clock_ms())
            call.on_cancel = lambda: self._post(lambda: self._door.detach(TaskId(task), waiter))
            return
        self._door.ended_reply(task, partial(_answered, call, waiter, task))

    def _dmesg(self, call: Call, args: Dmesg) -> None:
        for event in self._trace.events():
            call.event(_shape(event))
        if not args.follow:
            call.result({})
            return

        def follow(event: TraceEvent) -> None:
            call.event(_shape(event))

        self._trace.follow(follow)
        call.on_cancel = lambda: self._post(lambda: self._trace.unfollow(follow))


def _shape(event: TraceEvent) -> dict[str, object]:
    return {"trace": {"at": event.at_ms, "kind": event.kind, **event.details}}


def _answered(call: Call, waiter: CallWaiter, task: str, encoded: bytes | None) -> None:
    if encoded is None:
        call.error(UnknownTask(f"there is no task {task}: see `llmasos ps -a`"))
    else:
        waiter.reply(ErrorReply(error={}), encoded)


def _guarded(call: Call, run: Callable[[], None]) -> None:
    try:
        run()
    except LLMasOSError as error:
        call.error(error)


def _convert(args: dict[str, object], kind: type[T]) -> T:
    try:
        return msgspec.convert(args, kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"args: {error}") from error
