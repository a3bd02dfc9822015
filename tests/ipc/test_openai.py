"""Tests of OpenAI's messages: what becomes of a request, what is refused by name, and how answers look."""

import json
from typing import Any

import msgspec
import pytest

from llmasos_edge.errors import BadRequest, DeadlineExceeded, NotPermitted, QueueFull
from llmasos_edge.ipc.messages import OkReply, Output, Timing, Usage
from llmasos_edge.ipc.openai import Chunks, CompletionRequest, completion, decode_completion, error_body, model_list

HELLO = {"messages": [{"role": "user", "content": "hello"}]}
REPLY = OkReply(
    id="r",
    task="1-7",
    node="n",
    output=Output(text="Hi there", finish_reason="length"),
    usage=Usage(prompt_tokens=5, cached_tokens=2, completion_tokens=3),
    timing=Timing(queued_ms=0, first_token_ms=1, total_ms=2, preemptions=0),
    klass="batch",
)


def decode(**fields: Any) -> CompletionRequest:
    return decode_completion(msgspec.json.encode(HELLO | fields))


@pytest.mark.parametrize(
    ("field", "value", "name", "ours"),
    [
        ("max_tokens", 7, "max_tokens", 7),
        ("max_completion_tokens", 8, "max_tokens", 8),
        ("service_tier", "priority", "klass", "interactive"),
        ("service_tier", "auto", "klass", "normal"),
        ("service_tier", "default", "klass", "normal"),
        ("service_tier", "flex", "klass", "batch"),
        ("class", "critical", "klass", "critical"),
        ("deadline_ms", 900, "deadline_ms", 900),
        ("session", "trip", "session", "trip"),
        ("stop", ["a", "b"], "stop", ["a", "b"]),
        ("top_k", 3, "top_k", 3),
        ("response_format", {"type": "json_object"}, "format", "json"),
        ("response_format", {"type": "text"}, "format", None),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
            "format",
            {"type": "object"},
        ),
    ],
)
def test_what_is_served_becomes_a_request_of_ours(field: str, value: object, name: str, ours: object) -> None:
    """By another name, where it has one."""
    assert getattr(decode(**{field: value}).chat, name) == ours


def test_a_class_goes_before_a_tier() -> None:
    """It says more: a tier can't be critical."""
    assert decode(service_tier="flex", **{"class": "critical"}).chat.klass == "critical"


def test_messages_are_made_plain() -> None:
    """Text in parts is joined, developers are the system, and what says nothing is left out."""
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "d"},
    ]
    said = [(each.role, each.content) for each in decode(messages=messages).chat.messages]
    assert said == [("system", "a\nb"), ("assistant", "c"), ("user", "d")]


def test_what_changes_nothing_is_taken() -> None:
    """Whether harmless, or asking for what is done anyway, or null."""
    asked = decode(
        user="u", metadata={"a": "b"}, store=True, n=1, logprobs=False, tools=[], tool_choice="auto", logit_bias={},
        frequency_penalty=0.0, modalities=["text"], parallel_tool_calls=True, temperature=None,
    )  # fmt: skip
    assert asked.chat.temperature is None


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"n": 2}, "n: not served"),
        ({"logprobs": True}, "logprobs: not served"),
        ({"tools": [{"type": "function"}]}, "tools: not served"),
        ({"tool_choice": "required"}, "tool_choice: not served"),
        ({"presence_penalty": 0.5}, "presence_penalty: not served"),
        ({"temprature": 1}, "temprature: unknown field, did you mean 'temperature'"),
        ({"temperature": 3}, "temperature: expected float <= 2"),
        ({"max_tokens": 0}, "max_tokens: expected int >= 1"),
        ({"stream": 1}, "stream: expected true or false"),
        ({"stream_options": []}, "stream_options: expected an object"),
        ({"stream_options": {"usage": True}}, "stream_options.usage: unknown"),
        ({"stream_options": {"include_usage": "x"}}, "stream_options.include_usage: expected true"),
        ({"service_tier": "gold"}, "service_tier: must be one of"),
        ({"service_tier": []}, "service_tier: must be one of"),
        ({"response_format": {"type": "yaml"}}, "response_format.type: must be"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema: missing"),
        ({"response_format": "json"}, "response_format.type: must be"),
        ({"messages": "x"}, "messages: expected array"),
        ({"messages": ["x"]}, r"messages\[0\]: expected an object"),
        ({"messages": []}, "messages: expected array of length"),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content: expected str"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, r"content\[0\].type: 'image_url'"),
        ({"messages": [{"role": "user", "content": [3]}]}, r"messages\[0\].content\[0\]: expected"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, r"messages\[0\].name: not served"),
        ({"messages": [{"role": "user", "content": "x", "mood": "?"}]}, r"mood: unknown field"),
    ],
)
def test_what_can_not_be_done_is_refused_by_name(fields: dict[str, Any], error: str) -> None:
    """Rather than left out in silence."""
    with pytest.raises(BadRequest, match=error):
        decode(**fields)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'"x"', b"[" * 100_000, b'{"messages": "\xff"}'])
def test_a_body_that_is_none_is_refused(body: bytes) -> None:
    """Whatever it is, it is the caller's mistake."""
    with pytest.raises(BadRequest, match="body: "):
        decode_completion(body)


def test_a_completion_has_the_text_and_the_usage() -> None:
    """And the tier that it ran in."""
    shape = json.loads(completion(REPLY, "tiny", 12))
    assert (shape["id"], shape["object"], shape["model"], shape["created"]) == (
        "chatcmpl-1-7",
        "chat.completion",
        "tiny",
        12,
    )
    (choice,) = shape["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hi there", "length")
    assert (shape["service_tier"], shape["class"]) == ("flex", "batch")
    usage = shape["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 3, 8)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


def events(data: bytes) -> list[Any]:
    lines = data.decode().split("\n\n")
    assert lines.pop() == ""
    return [line if line == "data: [DONE]" else json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("usage", [True, False])
def test_a_stream_is_the_text_in_pieces(usage: bool) -> None:
    """The first piece says whose it is; the usage comes before the end, if it was asked for."""
    chunks = Chunks("1-7", 'a "content":null model', 12, usage=usage)
    told = events(chunks.text('Hi "') + chunks.text("you\n") + chunks.end(REPLY))
    assert told.pop() == "data: [DONE]"
    if usage:
        last = told.pop()
        assert (last["choices"], last["usage"]["total_tokens"]) == ([], 8)
    deltas = [event["choices"][0]["delta"] for event in told]
    assert deltas == [{"role": "assistant", "content": 'Hi "'}, {"content": "you\n"}, {}]
    assert [event["choices"][0]["finish_reason"] for event in told] == [None, None, "length"]
    assert all(event["model"] == 'a "content":null model' for event in told)
    assert all(("usage" in event) == usage for event in told)


def test_an_error_says_what_kind_it_is() -> None:
    """By OpenAI's types, with our code, and the field of a wrong request."""
    shape = json.loads(error_body(BadRequest("messages[0].content: expected str, got null")))["error"]
    assert (shape["type"], shape["code"]) == ("invalid_request_error", "bad_request")
    assert shape["param"] == "messages[0].content"
    shape = json.loads(error_body(QueueFull("9 tasks wait already", retry_after_ms=1500)))["error"]
    assert (shape["type"], shape["code"], shape["retry_after_ms"]) == ("rate_limit_error", "queue_full", 1500)
    shape = json.loads(error_body(NotPermitted("a key is needed"), 401))["error"]
    assert (shape["type"], shape["param"]) == ("authentication_error", None)
    shape = json.loads(error_body(DeadlineExceeded("too late", details={"text": "so far"})))["error"]
    assert (shape["type"], shape["details"]) == ("server_error", {"text": "so far"})


def test_models_are_listed() -> None:
    """Each with what OpenAI's clients need of one."""
    shape = json.loads(model_list(["a", "b"], 12))
    assert [row["id"] for row in shape["data"]] == ["a", "b"]
    assert shape["data"][0] == {"id": "a", "object": "model", "created": 12, "owned_by": "llmasos"}
