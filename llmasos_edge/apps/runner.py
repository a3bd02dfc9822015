"""The runner of apps: a message that triggers becomes a request, and its answer, or the fallback, a publication.

It asks through `submit`, the same door as every caller's, and acts through `publish`, `subscribe` and `event`. All are
given to it: none of them is called with the lock held, and none may block. Its methods may be called from any thread.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from llmasos_edge.apps.spec import AppSpec, publish_fault
from llmasos_edge.apps.template import Variables
from llmasos_edge.apps.trigger import Decision, Drop, Start, TriggerQueue, Wait
from llmasos_edge.config.section import suggestion
from llmasos_edge.errors import BadRequest, DeadlineExceeded, LLMasOSError, UnknownApp, from_wire
from llmasos_edge.ipc.topics import matches


@dataclass(frozen=True, slots=True)
class Run:
    """One triggered run: by which topic, and where its answer goes. `durable`: it must survive a crash (queue: every).

    A journal that keeps these four values with the request can hand the answer to `AppRunner.adopt` after a restart.
    """

    app: str
    topic: str
    target: str
    durable: bool


Reply = Mapping[str, object]  # CONTRACT: {"status": "ok", "output": {"text"...}} or {"status": "error", "error": {...}}
OnDone = Callable[[Reply], None]
Submit = Callable[[Run, dict[str, object], OnDone], None]  # the body of a `chat` request; may raise LLMasOSError
Publish = Callable[[str, bytes], object]  # topic, payload; at QoS 1
Event = Callable[[str, dict[str, object]], object]  # kind, details


@dataclass(slots=True)
class _Program:
    spec: AppSpec
    queue: TriggerQueue | None  # with a trigger
    stats: Counter[str]


@dataclass(frozen=True, slots=True)
class _Open:
    """A run whose answer is awaited, until its deadline."""

    program: _Program
    run: Run
    due_ms: int | None


class AppRunner:
    """The node's apps, running. `clock_ms` is any monotonic clock; `tick` takes its time from the same one."""

    def __init__(
        self,
        specs: Mapping[str, AppSpec],
        *,
        submit: Submit,
        publish: Publish,
        subscribe: Callable[[str], object],
        clock_ms: Callable[[], int],
        event: Event,
    ) -> None:
        self._programs = {name: _program(spec) for name, spec in specs.items()}
        self._submit = submit
        self._publish = publish
        self._subscribe = subscribe
        self._clock_ms = clock_ms
        self._event = event
        self._lock = threading.Lock()
        self._open: dict[int, _Open] = {}
        self._tickets = 0

    def start(self) -> None:
        """Subscribe to what triggers."""
        for pattern in sorted({it.queue.trigger.mqtt for it in self._programs.values() if it.queue}):
            self._subscribe(pattern)

    def on_message(self, topic: str, payload: bytes, retained: bool) -> bool:
        """A message of a subscribed topic; whether it began a run that must survive a crash."""
        durable = False
        for program in self._programs.values():
            queue = program.queue
            if queue is None or not matches(queue.trigger.mqtt, topic) or (retained and not queue.trigger.retained):
                continue
            with self._lock:
                program.stats["messages"] += 1
                decision = queue.on_message(topic, payload, self._clock_ms())
            durable |= isinstance(decision, Start) and queue.trigger.queue == "every"
            self._act(program, decision)
        return durable

    def tick(self, now_ms: int) -> None:
        """Start what the rate limits let go, and give up what is past its deadline: its fallback can't wait."""
        with self._lock:
            late = [ticket for ticket, it in self._open.items() if it.due_ms is not None and it.due_ms <= now_ms]
            due = [(it, start) for it in self._programs.values() if it.queue for start in it.queue.due(now_ms)]
        for ticket in late:
            self._settle(ticket, _refusal(DeadlineExceeded("no answer within the app's deadline_ms")))
        for program, start in due:
            self._act(program, start)

    def next_tick(self) -> int | None:
        """When `tick` has something to do next, if nothing else happens."""
        with self._lock:
            moments = [it.due_ms for it in self._open.values()]
            moments += [it.queue.next_due() for it in self._programs.values() if it.queue]
        return min((it for it in moments if it is not None), default=None)

    def expand(self, app: str, given: str | dict[str, object]) -> dict[str, object]:
        """The `chat` body that runs an app on an input: the app's own values, which the caller's fields override."""
        program = self._known(app)
        if not given or (isinstance(given, str) and not given.strip()):
            raise BadRequest("input: it is empty")
        try:
            body = _body(program.spec, {"input": given})
        except BadRequest as error:
            hint = f" (its messages come from {program.spec.trigger.mqtt})" if program.spec.trigger else ""
            raise BadRequest(f'input: app "{app}": {error.message}{hint}') from None
        with self._lock:
            program.stats["runs"] += 1
        return body

    def system(self, app: str) -> str | None:
        """The system prompt of an app that is the same for whoever runs it."""
        program = self._programs.get(app)
        system = program.spec.system if program else None
        return system.render({}) if system and system.constant else None

    def adopt(self, run: Run) -> OnDone:
        """Take over a run that an earlier life of the node submitted: what to call with its reply."""
        return self._await(self._known(run.app), run)

    def listing(self) -> list[dict[str, object]]:
        """What `apps` shows: name, description, class, model, and the trigger's filter where there is one."""
        return [_listed(it.spec) for it in self._programs.values()]

    def show(self, app: str) -> dict[str, object]:
        """What `app show` shows: the `spec` of the file, and counts since the start. UnknownApp says what there is."""
        program = self._known(app)
        with self._lock:
            return {"spec": dict(program.spec.shape), "stats": dict(program.stats)}

    def _known(self, app: str) -> _Program:
        if app not in self._programs:
            raise UnknownApp(
                f'no app "{app}"{suggestion(app, self._programs)}', details={"apps": sorted(self._programs)}
            )
        return self._programs[app]

    def _act(self, program: _Program, decision: Decision) -> None:
        match decision:
            case Start():
                self._begin(program, decision)
            case Wait(replaced=replaced):
                self._count(program, "replaced" if replaced else "waited")
            case Drop(topic, reason, message):
                self._count(program, "dropped")
                if reason != "condition":
                    self._event("app.dropped", {"app": program.spec.name, "topic": topic, "message": message})

    def _begin(self, program: _Program, start: Start) -> None:
        self._count(program, "runs")
        variables = {"topic": start.topic.split("/"), "payload": start.payload}
        try:
            run = _run(program.spec, start.topic, variables)
        except BadRequest as error:
            self._fail(program, start.topic, error)
            self._finish(program, start.topic)
            return
        on_done = self._await(program, run)
        try:
            self._submit(run, _body(program.spec, variables), on_done)
        except LLMasOSError as error:
            on_done(_refusal(error))

    def _await(self, program: _Program, run: Run) -> OnDone:
        deadline_ms = program.spec.deadline_ms
        with self._lock:
            self._tickets += 1
            due_ms = None if deadline_ms is None else self._clock_ms() + deadline_ms
            self._open[self._tickets] = _Open(program, run, due_ms)
            return partial(self._settle, self._tickets)

    def _settle(self, ticket: int, reply: Reply) -> None:
        """Publish the answer or, if it is none, the fallback: whichever comes first, once."""
        with self._lock:
            settled = self._open.pop(ticket, None)
        if settled is None:
            return
        program, run = settled.program, settled.run
        try:
            payload = program.spec.format.payload(_text(reply))
        except LLMasOSError as error:
            self._fall_back(program, run, error)
        else:
            self._publish(run.target, payload)
            self._count(program, "published")
        self._finish(program, run.topic)

    def _fall_back(self, program: _Program, run: Run, error: LLMasOSError) -> None:
        if program.spec.fallback is None:
            self._fail(program, run.topic, error)
            return
        self._publish(run.target, program.spec.fallback)
        self._count(program, "fallbacks")
        self._event("app.fallback", {"app": run.app, "topic": run.topic, "error": error.wire()})

    def _fail(self, program: _Program, topic: str, error: LLMasOSError) -> None:
        self._count(program, "failed")
        self._event("app.failed", {"app": program.spec.name, "topic": topic, "error": error.wire()})

    def _finish(self, program: _Program, topic: str) -> None:
        with self._lock:
            following = program.queue.on_finished(topic, self._clock_ms()) if program.queue else None
        if isinstance(following, Start):
            self._act(program, following)

    def _count(self, program: _Program, what: str) -> None:
        with self._lock:
            program.stats[what] += 1


def _program(spec: AppSpec) -> _Program:
    return _Program(spec, TriggerQueue(spec.trigger) if spec.trigger else None, Counter())


def _run(spec: AppSpec, topic: str, variables: Variables) -> Run:
    target = spec.publish.render(variables) if spec.publish else ""
    fault = publish_fault(target, spec.trigger)
    if fault:
        raise BadRequest(f'can\'t publish on "{target[:200]}": {fault}')
    return Run(spec.name, topic, target, spec.trigger is not None and spec.trigger.queue == "every")


def _body(spec: AppSpec, variables: Variables) -> dict[str, object]:
    """The body of a `chat` request; what the app does not say is left out."""
    messages = [{"role": "user", "content": spec.prompt.render(variables)}]
    if spec.system:
        messages.insert(0, {"role": "system", "content": spec.system.render(variables)})
    own: dict[str, object] = {
        "messages": messages,
        "class": spec.klass.name.lower(),
        "model": spec.model,
        "deadline_ms": spec.deadline_ms,
        "max_tokens": spec.max_tokens,
        "temperature": spec.temperature,
        "format": spec.format.wire,
    }
    return {key: value for key, value in own.items() if value is not None}


def _text(reply: Reply) -> str:
    """The text of an answer; the error that a reply carries is raised."""
    error, output = reply.get("error"), reply.get("output")
    if reply.get("status") != "ok" or not isinstance(output, Mapping):
        raise from_wire(error if isinstance(error, Mapping) else {})
    return str(output.get("text", ""))


def _refusal(error: LLMasOSError) -> Reply:
    return {"status": "error", "error": error.wire()}


def _listed(spec: AppSpec) -> dict[str, object]:
    trigger: dict[str, object] = {"trigger": spec.trigger.mqtt} if spec.trigger else {}
    return {
        "name": spec.name,
        "description": spec.description,
        "class": spec.klass.name.lower(),
        "model": spec.model,
    } | trigger
