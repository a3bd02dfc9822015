"""The door: every request for text comes in here, and every reply goes out from here. On the kernel's thread.

A durable request is journaled before anybody is told that it was taken, and its reply before anybody gets it.
"""

import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec

from llmasos_edge.api.conversations import Conversations
from llmasos_edge.api.requests import Accepting
from llmasos_edge.api.ticket import Post, Reply, Ticket, Waiter, reply_of
from llmasos_edge.engine.protocol import Message, Program, system_part
from llmasos_edge.errors import Internal, LLMasOSError, Panic
from llmasos_edge.ipc.messages import Accepted, ErrorReply, Generation, encode
from llmasos_edge.kernel.syscalls import Syscalls
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.trace import Trace
from llmasos_edge.kernel.units import Milliseconds, TaskId
from llmasos_edge.services.journal import Entry, Journal, Turns
from llmasos_edge.services.security import Caller

log = logging.getLogger(__name__)
REMEMBERED: Final = 256  # replies of requests that are not durable, for repeats
REMEMBER_MS: Final = 10 * 60_000
SHUTTING_DOWN: Final = "shutting_down"

Key = tuple[str, str]  # client, id


@dataclass(frozen=True, slots=True)
class Arrival:
    """A decoded request at the door. `route` is where its replies go, for the journal; `entry`: taken again from it."""

    op: str
    body: bytes
    request: Generation
    caller: Caller
    id: str
    waiter: Waiter
    durable: bool = False
    route: bytes = b""
    deadline_ms: int | None = None
    ack: Callable[[], None] | None = None
    entry: Entry | None = None
    local: bool = False


@dataclass(frozen=True, slots=True)
class Clocks:
    monotonic_ms: Callable[[], Milliseconds]
    wall_ms: Callable[[], int]


class Door:
    """Implements Userland for the kernel."""

    def __init__(
        self,
        node: str,
        boot: int,
        journal: Journal,
        accepting: Accepting,
        clocks: Clocks,
        post: Post,
    ) -> None:
        self._node, self._boot = node, boot
        self.accepting = accepting  # may be replaced on the kernel's thread
        self._journal, self._clocks, self._post = journal, clocks, post
        self._syscalls: Syscalls | None = None
        self._trace: Trace | None = None
        self._made = 0
        self._tickets: dict[TaskId, Ticket] = {}
        self._by_name: dict[Key, Ticket] = {}
        self._replied: OrderedDict[Key, tuple[Milliseconds, Reply, bytes]] = OrderedDict()
        self.conversations = Conversations(journal.turns)

    def open(self, syscalls: Syscalls, trace: Trace) -> None:
        self._syscalls, self._trace = syscalls, trace

    @property
    def syscalls(self) -> Syscalls:
        if self._syscalls is None:
            raise RuntimeError("Door.syscalls: not open yet")
        return self._syscalls

    # ---- in

    def arrive(self, arrival: Arrival) -> TaskId | None:
        """Take a request, or give a repeat what the first one got. Raises nothing: errors go to the waiter."""
        key = (arrival.caller.client, arrival.id)
        if arrival.entry is None and self._repeat(key, arrival):
            return None
        now = self._clocks.monotonic_ms()
        try:
            ticket, task = self._admit(arrival, now)
        except LLMasOSError as error:
            self._refuse(arrival, error)
            return None
        except Panic:
            raise
        except Exception:
            # One request must not take the node down again at each redelivery.
            log.exception("a request of %s can't be admitted", arrival.caller.client)
            self._refuse(arrival, Internal("a bug of the node: its log has the details"))
            return None
        self._tickets[task.id] = self._by_name[key] = ticket
        accepted = self._accepted(task)
        if arrival.entry is not None:
            ticket.safe = True
        elif arrival.durable:
            self._keep(ticket, arrival, task, accepted)
        else:
            self._acknowledge(ticket)
            arrival.waiter.accepted(accepted)
        return task.id

    def _admit(self, arrival: Arrival, now: Milliseconds) -> tuple[Ticket, Task]:
        entry = arrival.entry
        if entry is None:
            self._made += 1
            task_id, attempt = TaskId(f"{self._boot}-{self._made}"), 1
            seed = arrival.request.seed if arrival.request.seed is not None else secrets.randbits(31)
            deadline_ms = arrival.deadline_ms
        else:
            task_id, seed = TaskId(entry.task), entry.seed
            attempt = self._boot - int(entry.task.partition("-")[0]) + 1
            elapsed = self._journal.elapsed_ms(entry)
            deadline_ms = None if entry.deadline_ms is None else max(0, entry.deadline_ms - elapsed)
        submission = self.accepting.submission(arrival.request, arrival.caller, task_id, seed, deadline_ms, attempt)
        task = self.syscalls.submit(submission, now)
        program = submission.program
        turn = program.messages or () if isinstance(program, Program) else ()
        acks = [arrival.ack] if arrival.ack else []
        return Ticket(
            arrival.caller, arrival.id, task.id, turn, arrival.durable, [arrival.waiter], acks, arrival.local
        ), task

    def _keep(self, ticket: Ticket, arrival: Arrival, task: Task, accepted: Accepted) -> None:
        """Into the journal; then, and not before, the caller is told."""
        program = task.submission.program
        seed = program.sampling.seed if isinstance(program, Program) else 0
        entry = Entry(
            client=arrival.caller.client,
            id=arrival.id,
            task=task.id,
            op=arrival.op,
            body=arrival.body,
            seed=seed,
            route=arrival.route,
            accepted_wall_ms=self._clocks.wall_ms(),
            deadline_ms=task.submission.deadline_ms,
        )

        def told(error: LLMasOSError | None) -> None:
            if error is None:  # on the journal's thread, where the final reply is told after it
                arrival.waiter.accepted(accepted)
            self._post(partial(self._kept, ticket, arrival.waiter, accepted, error))

        try:
            self._journal.accept(entry, told)
        except LLMasOSError as error:
            self._not_kept(ticket, error)

    def _kept(self, ticket: Ticket, first: Waiter, accepted: Accepted, error: LLMasOSError | None) -> None:
        if error is not None:
            self._not_kept(ticket, error)
            return
        ticket.safe = True
        self._acknowledge(ticket)
        for waiter in ticket.waiters:
            if waiter is not first:
                waiter.accepted(accepted)

    def _not_kept(self, ticket: Ticket, error: LLMasOSError) -> None:
        """The disk did not take it: nobody was promised anything, so the caller may repeat it."""
        ticket.durable = False
        if ticket.task in self._tickets:
            self._close(ticket)
            self._give(ticket, ErrorReply(id=ticket.id, task=ticket.task, node=self._node, error=error.wire()))
            self.syscalls.cancel(ticket.task, self._clocks.monotonic_ms(), "it could not be journaled")
        self._acknowledge(ticket)

    def _repeat(self, key: Key, arrival: Arrival) -> bool:
        """The same (client, id) again: joins the task in hand, or gets the reply that there was."""
        ticket = self._by_name.get(key)
        if ticket is not None:
            self._join(ticket, arrival)
            return True
        old = self._replied.get(key)
        if old is not None and self._clocks.monotonic_ms() - old[0] < REMEMBER_MS:
            arrival.waiter.reply(old[1], old[2])
        elif self._journal.find(*key) is not None:
            self._journal.recall(*key, partial(_recalled, arrival.waiter))
        else:
            return False
        if arrival.ack:
            arrival.ack()
        return True

    def _join(self, ticket: Ticket, arrival: Arrival) -> None:
        """Computed once: one more may wait for it, and a durable repeat makes it durable."""
        if arrival.waiter not in ticket.waiters:
            ticket.waiters.append(arrival.waiter)
        if arrival.ack:
            ticket.acks.append(arrival.ack)
        task = self.syscalls.find(ticket.task)
        if arrival.durable and not ticket.durable and task is not None:
            ticket.durable = True
            self._keep(ticket, arrival, task, self._accepted(task))
        elif (ticket.safe or not ticket.durable) and task is not None:
            self._acknowledge(ticket)
            arrival.waiter.accepted(self._accepted(task))

    def _accepted(self, task: Task) -> Accepted:
        return Accepted(task=task.id, position=self.syscalls.position(task), eta_ms=self.syscalls.eta(task))

    def _refuse(self, arrival: Arrival, error: LLMasOSError) -> None:
        """An error that comes before the task; only one that was journaled before has to be ended there."""
        reply = ErrorReply(id=arrival.id, node=self._node, error=error.wire())
        encoded, entry = encode(reply), arrival.entry
        if entry is None:
            arrival.waiter.reply(reply, encoded)
            if arrival.ack:
                arrival.ack()
            return
        self._journal.finish(entry.client, entry.id, encoded, lambda _: arrival.waiter.reply(reply, encoded))
        if arrival.local:
            self._journal.delivered(entry.client, entry.id)

    def _acknowledge(self, ticket: Ticket) -> None:
        acks, ticket.acks = ticket.acks, []
        for ack in acks:
            ack()

    # ---- who waits

    def attach(self, task: TaskId, waiter: Waiter) -> bool:
        """Wait for a task that is under way; False if there is none."""
        ticket = self._tickets.get(task)
        if ticket is not None:
            ticket.waiters.append(waiter)
        return ticket is not None

    def detach(self, task: TaskId, waiter: Waiter) -> None:
        ticket = self._tickets.get(task)
        if ticket is not None and waiter in ticket.waiters:
            ticket.waiters.remove(waiter)

    def ended_reply(self, task_id: str, then: Callable[[bytes | None], None]) -> None:
        """The reply of a task that has ended: from the table, or from the journal while it is remembered there."""
        task = self.syscalls.find(TaskId(task_id))
        if task is not None:
            then(encode(reply_of(task_id, self._node, task, self._clocks.monotonic_ms())))
        else:
            self._journal.recall_task(task_id, then)

    def named(self, client: str, request_id: str) -> TaskId | None:
        """The task under way of a client's request."""
        ticket = self._by_name.get((client, request_id))
        return ticket.task if ticket is not None else None

    def program(self, task: Task) -> Program:
        """What the engine prepares: the program, after the session's turns so far. Called on a sender thread."""
        program = task.submission.program
        if not isinstance(program, Program):
            raise TypeError(f"Door.program: {type(program).__name__}")
        session = task.submission.session
        if session is None or program.messages is None:
            return program
        turns = self.conversations.turns(task.submission.client, session)
        return _after(turns, program)

    # ---- Userland: out

    def delta(self, task: Task, text: Sequence[str]) -> None:
        ticket = self._tickets.get(task.id)
        for waiter in tuple(ticket.waiters) if ticket else ():
            waiter.delta(text, task.attempt)

    def ended(self, task: Task) -> None:
        ticket = self._tickets.get(task.id)
        if ticket is None:
            return
        self._close(ticket)
        error = task.outcome.error if task.outcome else None
        if ticket.durable and error is not None and error.code == SHUTTING_DOWN:
            return  # it goes on after the restart
        turns = self._turn(ticket, task) if error is None else None
        reply = reply_of(ticket.id, self._node, task, self._clocks.monotonic_ms())
        if ticket.durable:
            self._finish(ticket, reply, turns, retry=error is not None and error.retry_after_ms is not None)
            return
        self._give(ticket, reply)
        if turns is not None:
            self._journal.append_turns(ticket.caller.client, turns, self._written(ticket, turns))

    def event(self, kind: str, details: object) -> None:
        if self._trace is not None:
            self._trace.record(self._clocks.monotonic_ms(), kind, details=details)

    def check_invariants(self) -> None:
        """Raises Panic: whoever waits here waits for a task that will end."""
        for task_id, ticket in self._tickets.items():
            task = self.syscalls.find(task_id)
            if task is None or not task.live:
                raise Panic(f"Door.check_invariants: {task_id} has ended, and {len(ticket.waiters)} wait for it")
        if len(self._by_name) != len(self._tickets):
            raise Panic(f"Door.check_invariants: {len(self._tickets)} tickets, {len(self._by_name)} names")

    def _close(self, ticket: Ticket) -> None:
        self._tickets.pop(ticket.task, None)
        self._by_name.pop((ticket.caller.client, ticket.id), None)

    def _turn(self, ticket: Ticket, task: Task) -> Turns | None:
        session = task.submission.session
        if session is None or not ticket.messages:
            return None
        messages = (*ticket.messages, Message("assistant", "".join(task.text)))
        self.conversations.append(ticket.caller.client, session, messages)
        return Turns(session, [{"role": message.role, "content": message.content} for message in messages])

    def _written(self, ticket: Ticket, turns: Turns | None) -> Callable[[LLMasOSError | None], None]:
        def then(error: LLMasOSError | None) -> None:
            if error is None and turns is not None:
                self.conversations.written(ticket.caller.client, turns.session)

        return then

    def _finish(self, ticket: Ticket, reply: Reply, turns: Turns | None, *, retry: bool) -> None:
        """Record the reply (unless a repeat shall be a new request), then give it."""
        encoded, written = encode(reply), self._written(ticket, turns)

        def then(error: LLMasOSError | None) -> None:
            written(error)
            for waiter in ticket.waiters:
                waiter.reply(reply, encoded)
            if ticket.local and not retry:
                self._journal.delivered(ticket.caller.client, ticket.id)

        if retry:
            self._journal.forget(ticket.caller.client, ticket.id, then)
        else:
            self._journal.finish(ticket.caller.client, ticket.id, encoded, then, turns)

    def _give(self, ticket: Ticket, reply: Reply) -> None:
        encoded = encode(reply)
        for waiter in ticket.waiters:
            waiter.reply(reply, encoded)
        if isinstance(reply, ErrorReply) and "retry_after_ms" in reply.error:
            return
        self._replied[ticket.caller.client, ticket.id] = (self._clocks.monotonic_ms(), reply, encoded)
        if len(self._replied) > REMEMBERED:
            self._replied.popitem(last=False)


def _recalled(waiter: Waiter, encoded: bytes | None) -> None:
    """A reply from the journal is the very bytes that were given before."""
    if encoded is not None:
        waiter.reply(ErrorReply(error={}), encoded)


def _after(turns: tuple[Message, ...], program: Program) -> Program:
    """The program that goes on from these turns: how it begins is the node's own if they too began so."""
    messages = turns + (program.messages or ())
    public = program.public and system_part(messages) == system_part(program.messages or ())
    return msgspec.structs.replace(program, messages=messages, public=public)
