"""Tests of what is asked over HTTP: routes, who may ask, answers whole and streamed, errors, waiting, hanging up."""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import pytest

from llmasos_edge.api.calls import Calls
from llmasos_edge.api.http_server import HttpCalls, refusal
from llmasos_edge.api.standing import TELL_EVERY_MS, Standing
from llmasos_edge.errors import BadRequest, LLMasOSError, NoMemory, QueueFull
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.units import ClientId, Milliseconds, ModelId, Priority
from llmasos_edge.services.keys import Keys
from llmasos_edge.services.security import Caller, Security
from tests.api.conftest import MODEL, Desk

HELLO = {"messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"


class Asked:
    """An exchange without a connection, which keeps what it is answered."""

    def __init__(self, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> None:
        self.method, self.target, self.body = method, target, body
        self._headers = {"host": "localhost:8000", **headers}
        self.gone = False
        self.on_hang_up: Callable[[], None] = lambda: None
        self.status = 0
        self.headers: dict[str, str] = {}
        self.data = b""
        self.writes = 0
        self.ended = False

    def header(self, name: str) -> str:
        return self._headers.get(name, "")

    def respond(self, status: int, headers: Any, body: bytes) -> None:
        self.begin(headers, body)
        self.status, self.ended = status, True

    def begin(self, headers: Any, data: bytes) -> None:
        assert not self.status
        self.status, self.headers = 200, dict(headers)
        self.send(data)

    def send(self, data: bytes) -> None:
        assert not self.ended
        self.data += data
        self.writes += 1

    def end(self, data: bytes) -> None:
        assert self.status
        self.send(data)
        self.ended = True

    @property
    def shape(self) -> Any:
        return json.loads(self.data)

    @property
    def events(self) -> list[Any]:
        parts = [part.removeprefix("data: ") for part in self.data.decode().split("\n\n")]
        return [json.loads(part) if part.startswith("{") else part for part in parts if part]


class Site:
    """The calls behind HTTP, before a desk."""

    def __init__(self, desk: Desk, keys: Keys | None = None, clients: tuple[Caller, ...] = ()) -> None:
        absent: Any = None
        self.standing = Standing(desk.syscalls)
        calls = Calls(
            node="desk",
            boot=1,
            kernel=desk.kernel,
            syscalls=desk.syscalls,
            standing=self.standing,
            door=desk.door,
            models=absent,
            apps=absent,
            sessions=desk.sessions,
            about=self,  # type: ignore[arg-type]
            clock_ms=lambda: desk.now,
            slow=lambda work, done, failed: done(work()),
        )
        self.calls = HttpCalls(desk.door, calls, Security(clients, proven=True), keys, desk.post)
        self.ready = True
        self._desk = desk

    def status(self) -> dict[str, object]:
        return {"ready": self.ready, "models": [{"id": MODEL}]}

    def ask(self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] = {}) -> Asked:
        asked = Asked(method, target, body, headers)
        exchange: Any = asked
        try:
            self.calls.handle(exchange)
        except LLMasOSError as error:  # the server answers with it
            asked.respond(*refusal(error))
        self._desk.settle()
        return asked

    def chat(self, **fields: object) -> Asked:
        return self.ask("POST", CHAT, json.dumps(HELLO | fields).encode())


@pytest.fixture
def site(desk: Desk) -> Site:
    return Site(desk)


def rows(desk: Desk) -> list[tuple[str, Priority]]:
    return [(task.submission.client, task.priority) for task in desk.kernel.table if task.live]


def test_a_whole_answer(desk: Desk, site: Site) -> None:
    """Once it is there, with its usage; the model is the one that was meant."""
    asked = site.chat()
    assert not asked.ended
    desk.answer("Hi")
    assert (asked.status, asked.headers["content-type"]) == (200, "application/json")
    shape = asked.shape
    assert (shape["id"], shape["model"], shape["usage"]["prompt_tokens"]) == ("chatcmpl-1-1", "tiny", 5)
    assert shape["choices"][0]["message"]["content"] == "Hi"


def test_a_streamed_answer(desk: Desk, site: Site) -> None:
    """Each piece is one write when it comes, the last one with the end."""
    asked = site.chat(stream=True, stream_options={"include_usage": True})
    assert asked.status == 0
    desk.engine.say("Hi")
    desk.settle()
    assert asked.headers["content-type"].startswith("text/event-stream")
    assert asked.writes == 1
    desk.answer(" you")
    assert asked.ended
    *pieces, usage, done = asked.events
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert (text, usage["usage"]["total_tokens"], done) == ("Hi you", 6, "[DONE]")
    assert asked.writes == 3


def test_an_answer_without_text_is_a_stream_too(desk: Desk, site: Site) -> None:
    """It has an end, and why."""
    asked = site.chat(stream=True)
    desk.engine.finish()
    desk.settle()
    assert [event if event == "[DONE]" else event["choices"][0]["finish_reason"] for event in asked.events] == [
        "stop",
        "[DONE]",
    ]


def test_tiers_are_classes(desk: Desk, site: Site) -> None:
    """And who needs no key is `http`."""
    site.chat(service_tier="priority")
    site.chat()
    site.chat(service_tier="flex")
    site.chat(**{"class": "critical"})
    assert rows(desk) == [
        ("http", Priority.INTERACTIVE),
        ("http", Priority.NORMAL),
        ("http", Priority.BATCH),
        ("http", Priority.CRITICAL),
    ]


def test_a_class_may_be_capped(desk: Desk) -> None:
    """By the node file; the answer says so."""
    asked = Site(desk, clients=(Caller(ClientId("http"), Priority.NORMAL),)).chat(service_tier="priority")
    assert rows(desk) == [("http", Priority.NORMAL)]
    desk.answer("Hi")
    assert (asked.shape["service_tier"], asked.shape["class"]) == ("default", "normal")


@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_their_status(desk: Desk, site: Site, stream: bool) -> None:
    """Those of the request, of admission, and of a task that has told nothing yet, streamed or not."""
    assert site.chat(stream=stream, n=2).status == 400
    unknown = site.chat(stream=stream, model="huge")
    assert (unknown.status, unknown.shape["error"]["code"]) == (404, "unknown_model")
    killed = site.chat(stream=stream)
    (task,) = [task for task in desk.kernel.table if task.live]
    desk.syscalls.cancel(task.id, desk.now)
    assert (killed.status, killed.headers["x-should-retry"]) == (409, "false")
    desk.syscalls.closing = True
    closing = site.chat(stream=stream)
    assert (closing.status, closing.headers["retry-after"]) == (503, "2")


def test_each_token_is_an_event(desk: Desk, site: Site) -> None:
    """Though several came with one report, and are sent together."""
    asked = site.chat(stream=True)
    desk.engine.say("Hi", " you", "!")
    desk.settle()
    assert [event["choices"][0]["delta"]["content"] for event in asked.events] == ["Hi", " you", "!"]


def test_an_error_in_the_middle_ends_the_stream(desk: Desk, site: Site) -> None:
    """As an event; nothing says that it is done."""
    asked = site.chat(stream=True)
    desk.engine.say("Hi")
    desk.settle()
    (task,) = desk.kernel.table.live()
    desk.syscalls.cancel(task.id, desk.now)
    first, last = asked.events
    assert first["choices"][0]["delta"]["content"] == "Hi"
    assert (last["error"]["code"], last["error"]["details"]) == ("cancelled", {"text": "Hi"})
    assert asked.ended


@pytest.mark.parametrize(("again", "fate"), [("Hi you", "Hi you"), ("Ho you", "engine_failed")])
def test_a_stream_goes_on_after_its_workers_death(desk: Desk, site: Site, again: str, fate: str) -> None:
    """What the next worker says again is not sent again; what it says otherwise can't be taken back."""
    asked = site.chat(stream=True)
    desk.engine.say("Hi")
    desk.settle()
    desk.engine.running.clear()
    desk.post(lambda: desk.dispatcher.handle(hal.Died(ModelId(MODEL), "killed"), desk.now))
    desk.settle()
    desk.engine.say(again)
    desk.settle()
    desk.engine.finish()
    desk.settle()
    assert asked.ended
    if fate == "engine_failed":
        assert asked.events[-1]["error"]["code"] == fate
    else:
        pieces = [event["choices"][0]["delta"].get("content", "") for event in asked.events[:-1]]
        assert "".join(pieces) == fate


def test_who_hangs_up_cancels_the_task(desk: Desk, site: Site) -> None:
    """While it runs, while it waits in line, and before the kernel has heard of it."""
    for _ in range(6):  # there are 4 sequences
        asked = site.chat(stream=True)
        last = asked.on_hang_up
    last()
    desk.settle()
    assert len(rows(desk)) == 5
    hasty = Asked("POST", CHAT, json.dumps(HELLO).encode(), {})
    exchange: Any = hasty
    site.calls.handle(exchange)
    hasty.gone = True
    desk.settle()
    assert len(rows(desk)) == 5


def test_who_waits_is_told_where(desk: Desk, site: Site) -> None:
    """Every 2 s, as a comment; those that run are not, and after the end nobody is."""
    streams = [site.chat(stream=True) for _ in range(6)]
    assert site.standing.next_tick() == desk.now + TELL_EVERY_MS
    site.standing.tick(desk.now)
    assert not any(asked.data for asked in streams)
    desk.now = Milliseconds(desk.now + TELL_EVERY_MS)
    site.standing.tick(desk.now)
    assert not any(asked.data for asked in streams[:4])
    assert streams[4].data.startswith(b": position 0, eta_ms ")
    assert streams[5].data.startswith(b": position 1, eta_ms ")
    assert streams[5].data.endswith(b"\n\n")
    assert site.standing.next_tick() == desk.now + TELL_EVERY_MS
    streams[5].on_hang_up()
    desk.settle()
    desk.answer("Hi")
    desk.answer("Hi")
    assert all(asked.ended for asked in streams)
    desk.now = Milliseconds(desk.now + TELL_EVERY_MS)
    site.standing.tick(desk.now)
    assert site.standing.next_tick() is None


def test_health_and_models(site: Site) -> None:
    """Health is 503 until the node is ready; the models are the node file's."""
    assert site.ask("GET", "/health").shape == {"status": "ok"}
    assert [row["id"] for row in site.ask("GET", "/v1/models?x=y").shape["data"]] == [MODEL]
    site.ready = False
    assert site.ask("GET", "/health").status == 503


@pytest.mark.parametrize(
    ("method", "target", "status", "words"),
    [
        ("GET", "/", 404, "nothing is served here; there are /health, /v1/models, /v1/chat/completions"),
        ("GET", "/metrics", 404, "not served by this version"),
        ("POST", "/v1/completions", 404, "not served by this version"),
        ("POST", "/v1/embeddings", 404, "not served by this version"),
        ("GET", CHAT, 405, "only POST is served here"),
        ("POST", "/health", 405, "only GET is served here"),
        ("OPTIONS", CHAT, 405, "only POST"),
        ("POST", CHAT, 400, "body: not valid JSON"),
    ],
)
def test_what_is_not_there_is_told(site: Site, method: str, target: str, status: int, words: str) -> None:
    """With what there is."""
    asked = site.ask(method, target)
    assert asked.status == status
    assert words in asked.shape["error"]["message"]
    assert (status == 405) == ("allow" in asked.headers)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": ""}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"host": "node.evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_without_keys_no_web_page_may_ask(site: Site, headers: dict[str, str], status: int) -> None:
    """A browser on this machine would else ask for any page that is open in it, under whatever name."""
    assert site.ask("GET", "/v1/models", headers=headers).status == status


def test_with_keys_clients_are_their_keys(desk: Desk) -> None:
    """The host does not matter then; health needs none."""
    keys = Keys({sha256(b"secret-of-the-panel").digest(): ClientId("panel")})
    site = Site(desk, keys, (Caller(ClientId("panel"), Priority.INTERACTIVE),))
    body = json.dumps(HELLO | {"class": "critical"}).encode()
    for wrong in ("", "Bearer", "Bearer wrong", "Basic secret-of-the-panel", "Bearer caf\u00e9"):
        asked = site.ask("POST", CHAT, body, {"authorization": wrong})
        assert (asked.status, asked.headers["www-authenticate"]) == (401, "Bearer")
        assert asked.shape["error"]["type"] == "authentication_error"
    site.ask("POST", CHAT, body, {"authorization": "bearer  secret-of-the-panel", "host": "node.lan"})
    assert rows(desk) == [("panel", Priority.INTERACTIVE)]
    assert site.ask("GET", "/health").status == 200


def test_clients_are_told_when_to_come_again() -> None:
    """OpenAI's clients do so by themselves, unless they are told that it is of no use."""
    status, headers, _ = refusal(QueueFull("9 wait", retry_after_ms=1200))
    assert (status, dict(headers)["retry-after"], dict(headers)["retry-after-ms"]) == (429, "2", "1200")
    status, headers, _ = refusal(NoMemory("never"))
    assert (status, dict(headers)["x-should-retry"]) == (503, "false")
    assert dict(refusal(BadRequest("x"))[1]) == {"content-type": "application/json"}
