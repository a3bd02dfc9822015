"""Tests of HTTP on a real node with its real model, mostly through the client library that its callers use."""

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from openai.types.shared_params import ResponseFormatJSONSchema

from tests.integration.conftest import MakeNode
from tests.integration.real_node import MODEL, PATIENCE_S, Json, RealNode, eventually

QUESTION = "What is the capital of France?"
STORY = "Tell a long story about the sea."
LONG = "The lighthouse keeper looked at the waves and wrote down what he saw. " * 30  # 450 tokens


def connect(node: RealNode, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)


@pytest.fixture
def client(node: RealNode) -> Iterator[openai.OpenAI]:
    with connect(node) as client:
        yield client


def user(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


class Stream:
    """A caller who may go at any moment: the bare connection of a streamed completion."""

    def __init__(self, node: RealNode, text: str, **fields: object) -> None:
        body = json.dumps({"messages": user(text), "stream": True, "temperature": 0} | fields).encode()
        url = urlsplit(node.url)
        self.link = socket.create_connection((str(url.hostname), url.port or 0), PATIENCE_S)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\ncontent-length: {len(body)}\r\n\r\n"
        before = {row["id"] for row in node.call("ps", all=True)}
        self.link.sendall(head.encode() + body)
        new: set[str] = set()

        def arrived() -> bool:
            new.update({row["id"] for row in node.call("ps", all=True)} - before)
            return bool(new)

        eventually(arrived, "the task is there")
        (self.task,) = new


def row(node: RealNode, task: str) -> Json:
    return next(each for each in node.call("ps", all=True) if each["id"] == task)


def ends_cancelled(node: RealNode, task: str) -> Json:
    """Its row, once it has ended because its caller hung up."""
    eventually(lambda: row(node, task)["state"] == "TERMINATED", "the task ends", 10)
    error = node.call("show", task=task)["error"]
    assert (error["code"], error["message"]) == ("cancelled", "its caller hung up")
    return row(node, task)


def test_a_chat_is_the_same_by_every_way(node: RealNode, client: openai.OpenAI) -> None:
    """Whole, streamed, and over the control socket: the same text, at temperature 0, with what it used."""
    body = {"messages": user(QUESTION), "temperature": 0, "max_tokens": 24}
    control = node.call("submit", op="chat", body=body)
    whole = client.chat.completions.create(model=MODEL, messages=user(QUESTION), temperature=0, max_tokens=24)
    assert whole.choices[0].message.content == control["output"]["text"]
    assert whole.choices[0].finish_reason == control["output"]["finish_reason"]
    assert whole.usage is not None
    assert whole.usage.completion_tokens == control["usage"]["completion_tokens"]
    assert whole.usage.total_tokens == control["usage"]["prompt_tokens"] + control["usage"]["completion_tokens"]
    assert whole.service_tier == "default"
    streamed = client.chat.completions.create(
        model=MODEL,
        messages=user(QUESTION),
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(streamed)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert (text, chunks[-1].choices[0].finish_reason) == (control["output"]["text"], whole.choices[0].finish_reason)
    assert (last.choices, last.usage and last.usage.completion_tokens) == ([], whole.usage.completion_tokens)
    shown = row(node, whole.id.removeprefix("chatcmpl-"))
    assert (shown["client"], shown["class"], shown["state"]) == ("http", "normal", "TERMINATED")


def test_models_and_health(node: RealNode, client: openai.OpenAI) -> None:
    """As programs look for them."""
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client._client.get(f"{node.url}/health").json() == {"status": "ok"}


def test_tiers_formats_and_sessions(node: RealNode, client: openai.OpenAI) -> None:
    """What goes beyond text: a class, an answer that follows a schema, a conversation that the node keeps."""
    schema: Json = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
    form: ResponseFormatJSONSchema = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    formatted = client.chat.completions.create(
        model=MODEL,
        messages=user("Name a city, as JSON."),
        service_tier="priority",
        temperature=0,
        response_format=form,
    )
    assert set(json.loads(formatted.choices[0].message.content or "")) == {"city"}
    assert formatted.service_tier == "priority"
    for prompt in ("My name is Ada.", "What is my name?"):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=user(prompt),
            temperature=0,
            max_tokens=16,
            extra_body={"session": "talk", "class": "batch", "deadline_ms": 60_000},
        )
    assert answer.service_tier == "flex"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.cached_tokens or 0) > 16
    assert [each["messages"] for each in node.call("sessions") if each["session"] == "talk"] == [4]


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"n": 3}, openai.BadRequestError, "n: not served"),
        ({"temperature": 9}, openai.BadRequestError, "temperature: expected"),
        ({"model": "gpt-4"}, openai.NotFoundError, "there is no model 'gpt-4'"),
        ({"messages": user(LONG * 9)}, openai.BadRequestError, "prompt"),
        ({"extra_body": {"deadline_ms": 1}}, openai.InternalServerError, "deadline"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_clients_own(
    client: openai.OpenAI, fields: Json, error: type[openai.APIStatusError], words: str, stream: bool
) -> None:
    """With the right class, by their status, and our words; streamed or not."""
    create: Any = client.chat.completions.create
    with pytest.raises(error, match=words):
        create(**{"model": MODEL, "messages": user("x"), "stream": stream} | fields)


def test_who_hangs_up_while_decoding(node: RealNode, client: openai.OpenAI) -> None:
    """The task ends; others do not notice."""
    stream = client.chat.completions.create(model=MODEL, messages=user(STORY), max_tokens=400, stream=True)
    task = next(iter(stream)).id.removeprefix("chatcmpl-")
    stream.close()
    assert 0 < ends_cancelled(node, task)["generated_tokens"] < 400


def test_who_hangs_up_in_prefill(node: RealNode) -> None:
    """Before a token is generated; the interrupt stops the step that is under way."""
    caller = Stream(node, LONG + os.urandom(4).hex(), max_tokens=40)
    eventually(lambda: row(node, caller.task)["state"] == "RUNNING", "it runs")
    caller.link.close()
    assert ends_cancelled(node, caller.task)["generated_tokens"] == 0


def test_who_hangs_up_in_the_queue(node: RealNode) -> None:
    """It is told where it stands while it waits, and gives up its place; a reset is as good as a goodbye."""
    busy = [Stream(node, STORY, max_tokens=400) for _ in range(8)]
    waiting = [Stream(node, STORY, max_tokens=8, service_tier="flex") for _ in range(2)]
    eventually(lambda: row(node, waiting[1].task)["state"] == "READY", "it waits for a sequence")
    told = b""
    while b": position 1, eta_ms " not in told:
        told += waiting[1].link.recv(1 << 16)
        assert b"data: " not in told
    waiting[1].link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    for stream in (*waiting, *busy):
        stream.link.close()
    for stream in waiting:
        assert ends_cancelled(node, stream.task)["generated_tokens"] == 0
    for stream in busy:
        ends_cancelled(node, stream.task)
    assert node.tasks() == []


def test_a_stream_outlives_its_worker(node: RealNode) -> None:
    """The answer goes on in the next one where it was, with the same text."""
    calm = node.call("submit", op="chat", body={"messages": user(STORY), "temperature": 0, "max_tokens": 60})
    with connect(node) as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=user(STORY),
            temperature=0,
            max_tokens=60,
            stream=True,
        )
        chunks = iter(stream)
        text = next(chunks).choices[0].delta.content or ""
        os.kill(node.children()["worker"], signal.SIGKILL)
        text += "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == calm["output"]["text"]


def test_many_streams_leave_nothing(node: RealNode) -> None:
    """64 at once, a third of which hang up: the rest is whole, and then there are as many descriptors as before."""
    files = Path(f"/proc/{node.pid}/fd")
    before = len(list(files.iterdir()))

    def one(number: int) -> str:
        with connect(node) as client:
            stream = client.chat.completions.create(
                model=MODEL,
                messages=user(f"Count from {number}."),
                max_tokens=6,
                stream=True,
            )
            if number % 3 == 0:
                stream.close()
                return "left"
            return [chunk.choices[0].finish_reason for chunk in stream][-1] or ""

    with ThreadPoolExecutor(64) as pool:
        ends = list(pool.map(one, range(64)))
    assert set(ends) <= {"left", "length", "stop"}
    eventually(lambda: not node.tasks() and len(list(files.iterdir())) <= before, "all is given back", 10)


def test_keys(make_node: MakeNode) -> None:
    """Clients are their keys; a changed file counts from the next reload on, and a broken one changes nothing."""
    node = make_node(http='{listen: "0.0.0.0:0", keys_file: http.keys}')
    keys = node.folder / "http.keys"
    keys.write_text("panel first-key-0123456789\nlamp  lamps-key-0123456789\n")
    keys.chmod(0o600)
    node.start()
    node.config.write_text(node.config.read_text())
    url = node.url.replace("0.0.0.0", "127.0.0.1")

    def ask(key: str) -> str:
        with closing(openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)) as client:
            answer = client.chat.completions.create(
                model=MODEL,
                messages=user("x"),
                max_tokens=1,
                service_tier="priority",
            )
        return str(row(node, answer.id.removeprefix("chatcmpl-"))["client"]) + f" {answer.service_tier}"

    assert ask("first-key-0123456789") == "panel priority"
    assert ask("lamps-key-0123456789") == "lamp default"  # by its ceiling in the node file
    with pytest.raises(openai.AuthenticationError, match="a key is needed"):
        ask("wrong")
    keys.write_text("panel other-key-0123456789\n")
    node.call("reload")
    assert node.status()["http"]["keys"] == 1
    with pytest.raises(openai.AuthenticationError):
        ask("first-key-0123456789")
    assert ask("other-key-0123456789") == "panel priority"
    keys.chmod(0o666)
    with pytest.raises(Exception, match="others may use it"):
        node.call("reload")
    assert ask("other-key-0123456789") == "panel priority"


def test_the_end_of_the_node_is_told(make_node: MakeNode) -> None:
    """To who waits with a status, to who reads along in the stream; then the daemon is gone at once."""
    node = make_node().start()
    heard: list[str] = []

    def read() -> None:
        with connect(node) as client:
            try:
                stream = client.chat.completions.create(
                    model=MODEL,
                    messages=user(STORY),
                    max_tokens=400,
                    stream=True,
                )
                heard.extend(chunk.choices[0].delta.content or "" for chunk in stream)
            except openai.APIError as error:
                heard.append(f"{error.code}")

    reader = threading.Thread(target=read)
    reader.start()
    eventually(lambda: bool(heard), "it reads along")
    assert node.terminate() == 0
    reader.join(PATIENCE_S)
    assert heard[-1] == "shutting_down"
