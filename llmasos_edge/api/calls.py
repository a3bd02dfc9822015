"""The table of system calls: name, arguments, who may call, and what is done. Handlers run on the kernel's thread.

A handler gives its result at once, or later through `done`; slow work (a pull, a verification) goes to `workers`.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from llmasos_edge.api import views
from llmasos_edge.api.arguments import AddModel, Nothing, OfApp, OfModel, OfSession, OfTask, Ps, Renice
from llmasos_edge.api.door import Door
from llmasos_edge.api.sessions import Sessions
from llmasos_edge.api.standing import Standing
from llmasos_edge.errors import BadRequest, Cancelled, EngineFailed, LLMasOSError, NotPermitted, Panic, UnknownTask
from llmasos_edge.ipc.messages import ModelRequest, Request
from llmasos_edge.kernel.dispatcher import COMPACT_STEP, Kernel
from llmasos_edge.kernel.syscalls import Syscalls
from llmasos_edge.kernel.task import State, Task
from llmasos_edge.kernel.trace import TraceEvent
from llmasos_edge.kernel.units import ClientId, Milliseconds, ModelId, Priority, SessionId, TaskId
from llmasos_edge.services.journal import SessionRow
from llmasos_edge.services.security import Caller

Json = dict[str, object]
Done = Callable[[Any], None]
Failed = Callable[[LLMasOSError], None]
Progressed = Callable[[Json], None]


class Models(Protocol):
    """The node's models on disk. Methods are slow: they run on a worker thread."""

    def listing(self) -> list[Json]: ...

    def pull(self, model: str, progress: Progressed) -> Json: ...

    def add(self, path: str, name: str, progress: Progressed) -> Json: ...

    def verify(self, model: str, progress: Progressed) -> Json: ...

    def remove(self, model: str) -> Json: ...


class Apps(Protocol):
    def listing(self) -> list[Json]: ...

    def show(self, app: str) -> Json: ...


class Node(Protocol):
    """What the composition root knows of itself."""

    def status(self) -> Json: ...

    def configuration(self) -> Json: ...

    def reload(self) -> Json:
        """Raises ConfigError; nothing has changed then."""

    def measured(self) -> Mapping[str, int]: ...


@dataclass(frozen=True, slots=True)
class Calls:
    """What the handlers need. `slow(work, done, failed)` runs work on another thread, the rest on the kernel's."""

    node: str
    boot: int
    kernel: Kernel
    syscalls: Syscalls
    standing: Standing
    door: Door
    models: Models
    apps: Apps
    sessions: Sessions
    about: Node
    clock_ms: Callable[[], Milliseconds]
    slow: Callable[[Callable[[], object], Done, Failed], None]

    def task(self, task_id: str) -> Task:
        return self.kernel.table.get(TaskId(task_id))

    def hung_up(self, task: TaskId) -> None:
        """Its caller has gone: nobody computes for nobody."""
        with suppress(UnknownTask):  # it has ended, and is no longer remembered
            self.syscalls.cancel(task, self.clock_ms(), "its caller hung up")

    def cancel(self, caller: Caller, target: str) -> Json:
        """A request of the caller's own by its id, or a task of its own. Raises UnknownTask, NotPermitted."""
        task_id = self.door.named(caller.client, target)
        if task_id is None:
            task = self.kernel.table.find(TaskId(target))
            if task is None:
                raise UnknownTask(f"target: {caller.client} has no request and no task {target!r} under way")
            if task.submission.client != caller.client and not caller.operate:
                raise NotPermitted(f"target: task {target} belongs to another client")
            task_id = task.id
        ended = self.syscalls.cancel(task_id, self.clock_ms())
        return {"task": ended.id, "state": ended.state.name}


@dataclass(frozen=True, slots=True)
class Context:
    """One call under way."""

    calls: Calls
    done: Done
    failed: Failed
    progress: Progressed

    def later(self, work: Callable[[], object]) -> None:
        self.calls.slow(work, self.done, self.failed)


def _status(context: Context, _: Nothing) -> None:
    context.done(context.calls.about.status())


def _check(context: Context, _: Nothing) -> None:
    """Whether the node's books balance: every task in its place, every byte charged once."""
    try:
        context.calls.syscalls.check_invariants()
        context.calls.door.check_invariants()
    except Panic as panic:
        context.done({"sound": False, "why": str(panic)})
    else:
        context.done({"sound": True, "why": None})


def _ps(context: Context, args: Ps) -> None:
    now = context.calls.clock_ms()
    tasks = [task for task in context.calls.kernel.table if args.all or task.live]
    context.done([views.task_row(task, now) for task in tasks])


def _show(context: Context, args: OfTask) -> None:
    calls = context.calls
    task = calls.task(args.task)
    stands = task.live and task.state is not State.SUSPENDED
    position, eta = (calls.syscalls.position(task), calls.syscalls.eta(task)) if stands else (None, None)
    context.done(views.task_detail(task, calls.clock_ms(), position, eta))


def _state(context: Context, task: Task) -> None:
    context.done({"task": task.id, "state": task.state.name})


def _kill(context: Context, args: OfTask) -> None:
    _state(
        context, context.calls.syscalls.cancel(TaskId(args.task), context.calls.clock_ms(), "killed by the operator")
    )


def _suspend(context: Context, args: OfTask) -> None:
    _state(context, context.calls.syscalls.suspend(TaskId(args.task), context.calls.clock_ms()))


def _resume(context: Context, args: OfTask) -> None:
    _state(context, context.calls.syscalls.resume(TaskId(args.task), context.calls.clock_ms()))


def _renice(context: Context, args: Renice) -> None:
    if args.klass.upper() not in Priority.__members__:
        raise BadRequest(f"class: {args.klass!r} is none of critical, interactive, normal, batch")
    priority = Priority[args.klass.upper()]
    _state(context, context.calls.syscalls.renice(TaskId(args.task), priority, context.calls.clock_ms()))


def _models(context: Context, _: Nothing) -> None:
    now = context.calls.clock_ms()
    loaded = {each.model: views.model_row(each, now) for each in context.calls.kernel.loader.processors()}

    def work() -> list[Json]:
        return [
            {**row, **loaded.get(ModelId(str(row["id"])), {"state": "unloaded"})}
            for row in context.calls.models.listing()
        ]

    context.later(work)


def _pull(context: Context, args: OfModel) -> None:
    context.later(partial(context.calls.models.pull, args.model, context.progress))


def _add(context: Context, args: AddModel) -> None:
    context.later(partial(context.calls.models.add, args.path, args.name, context.progress))


def _verify(context: Context, args: OfModel) -> None:
    context.later(partial(context.calls.models.verify, args.model, context.progress))


def _remove(context: Context, args: OfModel) -> None:
    context.calls.kernel.loader.forget(ModelId(args.model))
    context.later(partial(context.calls.models.remove, args.model))


def _load(context: Context, args: OfModel) -> None:
    calls, model = context.calls, ModelId(args.model)
    calls.syscalls.load(model, calls.clock_ms())
    if calls.syscalls.state(model) == "loading":
        _follow_load(context, model)
    else:
        context.done({"id": model, "state": calls.syscalls.state(model)})


def _follow_load(context: Context, model: ModelId) -> None:
    """Tell how far it comes, and answer when it ends."""
    trace = context.calls.kernel.trace

    def heard(event: TraceEvent) -> None:
        if event.details.get("model") != model:
            return
        if event.kind == "model.loading":
            context.progress({"stage": "loading", "fraction": event.details.get("progress", 0.0)})
            return
        if event.kind not in ("model.loaded", "model.dropped", "worker.died"):
            return
        trace.unfollow(heard)
        if event.kind == "model.loaded":
            context.done({"id": model, "state": "loaded"})
        elif event.kind == "model.dropped":
            by = event.details["by"]
            context.failed(Cancelled(f"{model} was dropped while it was loaded{f', for {by}' if by else ''}"))
        else:
            context.failed(EngineFailed(f"{model} could not be loaded: {event.details['why']}"))

    trace.follow(heard)


def _drop(context: Context, args: OfModel) -> None:
    calls, model = context.calls, ModelId(args.model)
    calls.syscalls.drop(model, calls.clock_ms())
    context.done({"id": model, "state": calls.syscalls.state(model)})


def _pin(pinned: bool, context: Context, args: OfModel) -> None:
    calls, model = context.calls, ModelId(args.model)
    calls.syscalls.pin(model, pinned, calls.clock_ms())
    context.done({"id": model, "state": calls.syscalls.state(model), "pinned": pinned})


def _mem(context: Context, _: Nothing) -> None:
    context.done(views.memory(context.calls.kernel, context.calls.about.measured()))


def _compact(context: Context, _: Nothing) -> None:
    """Step by step: in between the kernel does what else there is to do."""
    swapper = context.calls.kernel.swapper
    before, moved = views.arena(swapper.arena), 0

    def step(_: object) -> None:
        nonlocal moved
        if count := swapper.segments.compact(COMPACT_STEP):
            moved += count
            context.calls.slow(lambda: None, step, context.failed)
        else:
            after, moving = views.arena(swapper.arena), swapper.segments.compact_swap()
            context.done({"moved": moved, "before": before, "after": after, "swap_moving": moving})

    step(None)


def _sessions(context: Context, _: Nothing) -> None:
    states = context.calls.sessions.states()
    context.later(lambda: context.calls.sessions.listing(states))


def _session_show(context: Context, args: OfSession) -> None:
    sessions = context.calls.sessions
    states = sessions.states()

    def work() -> Json:
        row = sessions.find(args.session, args.client)
        return sessions.detail(row, states.get((ClientId(row.client), SessionId(row.name)), []))

    context.later(work)


def _of_session(act: Callable[[Context, SessionRow], None], context: Context, args: OfSession) -> None:
    """Look it up on the disk, then act on the kernel's thread."""

    def found(row: SessionRow) -> None:
        try:
            act(context, row)
        except LLMasOSError as error:
            context.failed(error)

    context.calls.slow(lambda: context.calls.sessions.find(args.session, args.client), found, context.failed)


def _session_park(context: Context, row: SessionRow) -> None:
    states = context.calls.sessions.park(row)
    context.done({"client": row.client, "session": row.name, "states": states})


def _session_remove(context: Context, row: SessionRow) -> None:
    answer = {"client": row.client, "session": row.name, "state": "removed"}
    context.calls.sessions.remove(row, lambda: context.done(answer))


def _apps(context: Context, _: Nothing) -> None:
    context.done(context.calls.apps.listing())


def _app_show(context: Context, args: OfApp) -> None:
    context.done(context.calls.apps.show(args.app))


def _config(context: Context, _: Nothing) -> None:
    context.done(context.calls.about.configuration())


def _reload(context: Context, _: Nothing) -> None:
    context.done(context.calls.about.reload())


Handler = Callable[[Context, Any], None]
CALLS: Final[Mapping[str, tuple[Any, Handler]]] = {
    "status": (Nothing, _status),
    "check": (Nothing, _check),
    "ps": (Ps, _ps),
    "show": (OfTask, _show),
    "kill": (OfTask, _kill),
    "suspend": (OfTask, _suspend),
    "resume": (OfTask, _resume),
    "renice": (Renice, _renice),
    "models": (Nothing, _models),
    "model.pull": (OfModel, _pull),
    "model.add": (AddModel, _add),
    "model.rm": (OfModel, _remove),
    "model.verify": (OfModel, _verify),
    "model.load": (OfModel, _load),
    "model.drop": (OfModel, _drop),
    "model.pin": (OfModel, partial(_pin, True)),
    "model.unpin": (OfModel, partial(_pin, False)),
    "mem": (Nothing, _mem),
    "mem.compact": (Nothing, _compact),
    "sessions": (Nothing, _sessions),
    "session.show": (OfSession, _session_show),
    "session.park": (OfSession, partial(_of_session, _session_park)),
    "session.rm": (OfSession, partial(_of_session, _session_remove)),
    "apps": (Nothing, _apps),
    "app.show": (OfApp, _app_show),
    "config.show": (Nothing, _config),
    "reload": (Nothing, _reload),
}

Op = Callable[[Calls, Caller, Request, Done, Failed], None]


def _status_op(calls: Calls, _caller: Caller, _request: Request, done: Done, _failed: Failed) -> None:
    done(calls.about.status())


def _model_op(name: str, calls: Calls, caller: Caller, request: Request, done: Done, failed: Failed) -> None:
    """Ops on models, for clients that may operate the node."""
    caller.must_operate(name)
    if not isinstance(request, ModelRequest):
        raise BadRequest(f"op: {name} needs a model")
    CALLS[name][1](Context(calls, done, failed, lambda _: None), OfModel(request.model))


OPS: Final[Mapping[str, Op]] = {
    "status": _status_op,
    **{name: partial(_model_op, name) for name in ("model.load", "model.drop", "model.pull")},
}
