"""Calls that come over HTTP, in OpenAI's words: health, models, chat completions."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from llmasos_edge.api.arguments import Nothing
from llmasos_edge.api.calls import CALLS, Calls, Context
from llmasos_edge.api.door import Arrival, Door
from llmasos_edge.api.ticket import Post, Reply
from llmasos_edge.config.addresses import is_loopback
from llmasos_edge.errors import BadRequest, EngineFailed, LLMasOSError, NotPermitted, from_wire
from llmasos_edge.ipc.http_connection import Answer, Exchange
from llmasos_edge.ipc.messages import Accepted, OkReply
from llmasos_edge.ipc.openai import (
    Chunks,
    CompletionRequest,
    completion,
    decode_completion,
    error_body,
    failed_event,
    model_list,
    position_comment,
    status_of,
)
from llmasos_edge.services.keys import Keys
from llmasos_edge.services.security import Caller, Security

JSON: Final = ("content-type", "application/json")
EVENTS: Final = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))
LATER: Final = ("/metrics", "/v1/completions", "/v1/embeddings")


class WholeAnswer:
    """Someone who waits for all of it."""

    def __init__(self, exchange: Exchange, model: str) -> None:
        self._exchange, self._model = exchange, model
        self._created = int(time.time())

    def accepted(self, accepted: Accepted) -> None:
        """HTTP has no word for it."""

    def delta(self, text: Sequence[str], attempt: int) -> None:
        """It comes with the reply."""

    def reply(self, reply: Reply, _: bytes) -> None:
        if isinstance(reply, OkReply):
            self._exchange.respond(200, [JSON], completion(reply, self._model, self._created))
        else:
            self._exchange.respond(*refusal(from_wire(reply.error)))


class StreamedAnswer:
    """Someone who reads along. The head waits until there is something to tell: an error before that has its status."""

    def __init__(self, exchange: Exchange, model: str, *, usage: bool) -> None:
        self._exchange, self._model, self._usage = exchange, model, usage
        self._chunks: Chunks | None = None
        self._begun = False
        self._sent, self._said, self._attempt = "", "", 1

    def accepted(self, accepted: Accepted) -> None:
        self._chunks = Chunks(accepted.task, self._model, int(time.time()), usage=self._usage)

    def delta(self, text: Sequence[str], attempt: int) -> None:
        """An event for each token, since callers count them; one message for all that came together.

        After its worker's death a task begins anew: what was sent before is not sent twice.
        """
        if attempt != self._attempt:
            self._attempt, self._said = attempt, ""
        events = b""
        for word in text:
            self._said += word
            if self._chunks is not None and len(self._said) > len(self._sent) and self._said.startswith(self._sent):
                events += self._chunks.text(self._said[len(self._sent) :])
                self._sent = self._said
        if events:
            self._send(events)

    def stands(self, position: int, eta_ms: int) -> None:
        self._send(position_comment(position, eta_ms))

    def reply(self, reply: Reply, _: bytes) -> None:
        if isinstance(reply, OkReply) and self._chunks is not None and reply.output.text.startswith(self._sent):
            rest = reply.output.text[len(self._sent) :]
            self._end((self._chunks.text(rest) if rest else b"") + self._chunks.end(reply))
            return
        if isinstance(reply, OkReply):
            error: LLMasOSError = EngineFailed("the worker died, and its next answer began otherwise: ask again")
        else:
            error = from_wire(reply.error)
        if self._begun:
            self._exchange.end(failed_event(error))
        else:
            self._exchange.respond(*refusal(error))

    def _send(self, data: bytes) -> None:
        if self._begun:
            self._exchange.send(data)
        else:
            self._begun = True
            self._exchange.begin(EVENTS, data)

    def _end(self, data: bytes) -> None:
        if not self._begun:
            self._exchange.begin(EVENTS, data)
            data = b""
        self._exchange.end(data)


class HttpCalls:
    """`handle` is called on the server's thread, and posts what concerns the kernel to the kernel's thread.

    `keys` may be replaced on any thread. None: nobody but this machine can call, and whoever does is `http`.
    """

    def __init__(self, door: Door, calls: Calls, security: Security, keys: Keys | None, post: Post) -> None:
        self.keys = keys
        self._door, self._calls, self._security, self._post = door, calls, security, post
        self._named = 0
        self._started = int(time.time())
        self._routes: Mapping[str, tuple[str, Callable[[Exchange, Caller], None]]] = {
            "/v1/models": ("GET", self._models),
            "/v1/chat/completions": ("POST", self._chat),
        }

    def handle(self, exchange: Exchange) -> None:
        """Raises BadRequest for what is not as it should be."""
        path = exchange.target.partition("?")[0]
        method, call = ("GET", None) if path == "/health" else self._routes.get(path, ("", None))
        if not method:
            _refuse(exchange, _no_route(path, self._routes), 404)
        elif exchange.method != method:
            error = BadRequest(f"{exchange.method} {path}: only {method} is served here")
            _refuse(exchange, error, 405, ("allow", method))
        elif call is None:
            self._ask("status", exchange, partial(_health, exchange))
        else:
            self._let_in(exchange, call)

    def _let_in(self, exchange: Exchange, call: Callable[[Exchange, Caller], None]) -> None:
        if self.keys is None:
            _check_local(exchange)
            call(exchange, self._security.http())
            return
        kind, _, key = exchange.header("authorization").partition(" ")
        client = self.keys.client(key.strip()) if kind.lower() == "bearer" else None
        if client is None:
            error = NotPermitted("a key is needed: send `Authorization: Bearer KEY`, one of those in http.keys_file")
            _refuse(exchange, error, 401, ("www-authenticate", "Bearer"))
        else:
            call(exchange, self._security.http(client))

    def _models(self, exchange: Exchange, _: Caller) -> None:
        def answer(status: Any) -> None:
            models = [str(row["id"]) for row in status["models"]]
            exchange.respond(200, [JSON], model_list(models, self._started))

        self._ask("status", exchange, answer)

    def _ask(self, call: str, exchange: Exchange, done: Callable[[Any], None]) -> None:
        """One of the calls without arguments."""
        context = Context(self._calls, done, lambda error: exchange.respond(*refusal(error)), lambda _: None)
        self._post(lambda: CALLS[call][1](context, Nothing()))

    def _chat(self, exchange: Exchange, caller: Caller) -> None:
        self._post(partial(self._arrive, exchange, caller, decode_completion(exchange.body)))

    def _arrive(self, exchange: Exchange, caller: Caller, asked: CompletionRequest) -> None:
        if exchange.gone:
            return
        self._named += 1
        request, name = asked.chat, f"{self._calls.boot}-h{self._named}"
        model = request.model or self._door.accepting.default_model
        stream = StreamedAnswer(exchange, model, usage=asked.usage) if asked.stream else None
        waiter = stream or WholeAnswer(exchange, model)
        task = self._door.arrive(
            Arrival("chat", b"", request, caller, name, waiter, deadline_ms=request.deadline_ms, local=True)
        )
        if task is not None:
            exchange.on_hang_up = lambda: self._post(partial(self._calls.hung_up, task))
            if stream is not None:
                self._calls.standing.follow(task, stream.stands, self._calls.clock_ms())


def refusal(error: LLMasOSError, status: int | None = None) -> Answer:
    """An error as an answer. OpenAI's clients repeat what failed by themselves: not what would fail again."""
    status = status or status_of(error)
    headers = [JSON]
    if error.retry_after_ms is not None:
        headers.append(("retry-after", str(-(-error.retry_after_ms // 1000))))
        headers.append(("retry-after-ms", str(error.retry_after_ms)))
    elif status >= 408:
        headers.append(("x-should-retry", "false"))
    return status, headers, error_body(error, status)


def _refuse(exchange: Exchange, error: LLMasOSError, status: int, *more: tuple[str, str]) -> None:
    status, headers, body = refusal(error, status)
    exchange.respond(status, [*headers, *more], body)


def _health(exchange: Exchange, status: Any) -> None:
    """200 once requests are served without waiting for a model; programs that start a node ask for that."""
    ready = status["ready"]
    body = b'{"status":"ok"}' if ready else b'{"status":"starting"}'
    exchange.respond(200 if ready else 503, [JSON], body)


def _no_route(path: str, routes: Mapping[str, object]) -> BadRequest:
    if path in LATER:
        return BadRequest(f"{path}: not served by this version")
    return BadRequest(f"{path[:100]}: nothing is served here; there are /health, {', '.join(routes)}")


def _check_local(exchange: Exchange) -> None:
    """Without keys a web page in this machine's browser must not call, under whatever name. Raises NotPermitted."""
    for name, scheme in (("host", "http://"), ("origin", "")):
        value = exchange.header(name)
        try:
            host = urlsplit(scheme + value).hostname or ""
        except ValueError:
            host = ""
        if value and not is_loopback(host):
            raise NotPermitted(f"{name}: without `http.keys_file` only this machine's own programs may call")
