"""Tests of what callers may send, of the errors they get, and of what the node sends."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.errors import BadRequest, QueueFull
from llmasos_edge.ipc.messages import (
    MAX_BODY,
    REQUESTS,
    Accepted,
    CancelRequest,
    ChatRequest,
    DoneReply,
    ErrorReply,
    GenerateRequest,
    Message,
    ModelRequest,
    NodeStatus,
    OkReply,
    Output,
    RunRequest,
    StatusRequest,
    StreamDelta,
    StreamDone,
    Timing,
    Usage,
    class_name,
    decode_request,
    encode,
    salvage_id,
    salvage_reply_to,
)
from llmasos_edge.kernel.units import Priority

SAY = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> bytes:
    """The body of a chat request with more fields."""
    return json.dumps({"messages": SAY, **fields}).encode()


def refusal(op: str, body: bytes) -> str:
    """The message of the BadRequest that `body` gets."""
    with pytest.raises(BadRequest) as refused:
        decode_request(op, body)
    return refused.value.message


def test_a_chat_request_with_every_field_is_understood() -> None:
    """All common fields of the contract arrive where the code looks for them."""
    request = decode_request(
        "chat",
        chat(
            **{"id": "a.1_B-2", "reply_to": "x/y", "model": "m", "session": "s", "stream": True, "class": "critical"},
            deadline_ms=5000,
            max_tokens=9,
            temperature=0,
            top_p=0.9,
            top_k=40,
            min_p=0.1,
            seed=7,
            stop=["\n", "END"],
            format={"type": "object"},
        ),
    )
    assert isinstance(request, ChatRequest)
    assert request.messages == [Message(role="user", content="hi")]
    assert request.priority is Priority.CRITICAL
    assert (request.id, request.reply_to, request.model, request.session) == ("a.1_B-2", "x/y", "m", "s")
    assert (request.temperature, request.seed, request.stops) == (0.0, 7, ("\n", "END"))


def test_what_is_not_given_is_none() -> None:
    """A missing field is told from a given one, so that apps can have defaults of their own."""
    request = decode_request("chat", chat())
    assert isinstance(request, ChatRequest)
    assert request.priority is None
    assert request.max_tokens is None
    assert request.stops == ()
    assert not request.stream


@pytest.mark.parametrize(
    ("op", "body", "expected"),
    [
        ("generate", {"prompt": "a"}, GenerateRequest(prompt="a")),
        ("run", {"app": "translate", "input": "x"}, RunRequest(app="translate", input="x")),
        ("run", {"app": "a", "input": {"k": [1]}}, RunRequest(app="a", input={"k": [1]})),
        ("cancel", {"target": "7"}, CancelRequest(target="7")),
        ("status", {}, StatusRequest()),
        ("model.load", {"model": "m"}, ModelRequest(model="m")),
        ("model.drop", {"model": "m"}, ModelRequest(model="m")),
        ("model.pull", {"model": "m", "id": "1"}, ModelRequest(model="m", id="1")),
    ],
)
def test_each_op_has_its_request(op: str, body: dict[str, Any], expected: object) -> None:
    """The smallest request of every op."""
    assert decode_request(op, json.dumps(body).encode()) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "a b"),
        ("id", ""),
        ("id", "x" * 65),
        ("id", "a\n"),
        ("id", 7),
        ("session", "a/b"),
        ("reply_to", ""),
        ("model", ""),
        ("stream", 1),
        ("class", "urgent"),
        ("deadline_ms", 0),
        ("deadline_ms", 1.5),
        ("deadline_ms", 10**40),
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_k", -1),
        ("min_p", 1.1),
        ("seed", -1),
        ("seed", True),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", ["a"] * 9),
        ("stop", [1]),
        ("format", "yaml"),
        ("format", 5),
        ("format", {"maxLength": 100_000}),
        ("messages", []),
        ("messages", SAY * 1025),
        ("messages", [{"role": "robot", "content": "x"}]),
        ("messages", [{"role": "user", "content": ["x"]}]),
        ("messages", [{"role": "user"}]),
        ("messages", "hi"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    """Whoever sends a wrong value is told which field it was."""
    assert refusal("chat", chat(**{field: value})).startswith(field)


def test_errors_say_what_is_expected() -> None:
    """The words that help: the choices, the near miss, the missing field, the limit."""
    assert refusal("chat", chat(**{"class": "x"})) == "class: 'x' is none of critical, interactive, normal, batch"
    assert refusal("chat", chat(temperatur=1)) == "temperatur: unknown field, did you mean 'temperature'?"
    assert refusal("chat", chat(klass="batch")) == "klass: unknown field, did you mean 'class'?"
    assert refusal("chat", chat(tools=[])) == "tools: not served by this version"
    assert refusal("chat", b"{}") == "messages: missing"
    assert refusal("chat", chat(messages=[{"role": "user"}])) == "messages[0].content: missing"
    nam = [{"role": "user", "content": "x", "contents": 1}]
    assert refusal("chat", chat(messages=nam)) == "messages[0].contents: unknown field, did you mean 'content'?"
    assert refusal("chat", chat(temperature=3)) == "temperature: expected float <= 2.0"
    assert refusal("chat", b"[]") == "body: expected object, got array"


def test_unknown_ops_are_refused_with_the_list() -> None:
    """A misspelt op gets a suggestion, and one that a later version serves is told as such."""
    assert refusal("chta", b"{}").startswith("op: unknown 'chta', did you mean 'chat'?; the ops are chat, generate")
    assert "not served by this version" in refusal("embed", b"{}")
    assert "not served by this version" in refusal("infer", b"{}")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"\xff\xfe",
        b'{"messages":[{"role":"user","content":"\xff"}]}',
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"messages":[{"role":"user","content":"x"}],"temperature":1e999}',
        b'{"messages":[{"role":"user","content":"x"}],"seed":1' + b"0" * 100_000 + b"}",
        b'{"messages":[{"role":"user","content":"x"}],"format":' + b'{"a":' * 200_000,
        b'{"messages":' + b"[" * 900_000,
        b'{"messages":[{"role":"user","content":"' + b"x" * MAX_BODY + b'"}]}',
    ],
)
def test_broken_and_huge_bodies_are_refused(body: bytes) -> None:
    """No body, however broken, deep or large, does anything but get an error."""
    refusal("chat", body)


def test_deeply_nested_input_is_refused() -> None:
    """An app's input reaches templates, so its depth is bounded, and a usual one passes."""

    def body(depth: int) -> bytes:
        return b'{"app":"a","input":' + b'{"x":' * depth + b"1" + b"}" * depth + b"}"

    decode_request("run", body(32))
    assert refusal("run", body(33)).startswith("input: nested")
    assert "nested" in refusal("run", body(100_000))


@given(st.sampled_from([*REQUESTS, "x"]), st.binary(max_size=200) | st.text(max_size=60).map(str.encode))
def test_random_bytes_get_a_request_or_a_bad_request(op: str, body: bytes) -> None:
    """Nothing but BadRequest ever comes out of decoding."""
    try:
        decode_request(op, body)
    except BadRequest as error:
        assert error.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9), st.lists, max_leaves=5
)


@given(st.dictionaries(st.sampled_from(["id", "stop", "format", "class", "messages", "zz", "seed"]), JSON))
def test_random_json_gets_a_request_or_a_bad_request(fields: dict[str, Any]) -> None:
    """Nor does any JSON of the wrong types make anything else."""
    try:
        decode_request("chat", json.dumps(fields).encode())
    except BadRequest as error:
        assert error.message


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"bad":1,"id":"a1"}', "a1"),
        (b'{"id":"a1","messages":[', "a1"),
        (b' { "id" : "a1" , \xff', "a1"),
        (b'{"messages":[{"id":"no"', None),
        (b'{"id":5}', None),
        (b'{"id":"a b"}', None),
        (b'{"id":"a+"', None),
        (b"[]", None),
        (b"", None),
        (b"[" * 500_000, None),
    ],
)
def test_the_id_is_saved_where_it_can_be_told(body: bytes, expected: str | None) -> None:
    """An error finds its caller even if the request was unreadable, and never someone else's id."""
    assert salvage_id(body) == expected


def test_the_reply_topic_is_saved_where_it_can_be_told() -> None:
    """Only a string in readable JSON counts."""
    assert salvage_reply_to(b'{"reply_to":"a/b","zz":1}') == "a/b"
    assert salvage_reply_to(b'{"reply_to":5}') is None
    assert salvage_reply_to(b"{") is None


def test_replies_have_the_shapes_of_the_contract() -> None:
    """Field by field, and without nulls."""
    reply = OkReply(
        id="7",
        task="1-1",
        node="kitchen",
        output=Output(text="hi", finish_reason="stop"),
        usage=Usage(prompt_tokens=3, cached_tokens=0, completion_tokens=1),
        timing=Timing(queued_ms=0, first_token_ms=5, total_ms=9, preemptions=0),
        klass="normal",
    )
    assert json.loads(encode(reply)) == {
        "id": "7",
        "task": "1-1",
        "node": "kitchen",
        "status": "ok",
        "output": {"text": "hi", "finish_reason": "stop"},
        "usage": {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 1},
        "timing": {"queued_ms": 0, "first_token_ms": 5, "total_ms": 9, "preemptions": 0},
        "class": "normal",
    }
    with_data = msgspec.structs.replace(reply, output=Output(text="null", finish_reason="stop", data=None))
    assert json.loads(encode(with_data))["output"]["data"] is None


def test_the_smaller_messages_have_the_shapes_of_the_contract() -> None:
    """Error, result of an operation, accepted, stream and status."""
    error = ErrorReply(error=QueueFull("full", retry_after_ms=9).wire())
    assert json.loads(encode(error)) == {
        "status": "error",
        "error": {"code": "queue_full", "message": "full", "retry_after_ms": 9},
    }
    done = DoneReply(id="1", node="kitchen", output={"ready": True})
    assert json.loads(encode(done)) == {"id": "1", "node": "kitchen", "status": "ok", "output": {"ready": True}}
    assert encode(Accepted(task="1-1", position=0, eta_ms=80)) == b'{"task":"1-1","position":0,"eta_ms":80}'
    assert encode(Accepted(task="1-1", position=0)) == b'{"task":"1-1","position":0}'
    assert encode(StreamDelta(seq=0, delta="a", attempt=1)) == b'{"seq":0,"delta":"a","attempt":1}'
    assert encode(StreamDone(seq=1, done=True)) == b'{"seq":1,"done":true}'
    status = NodeStatus(state="online", boot_id="b", version="0.1", since="2026-01-01T00:00:00Z")
    assert json.loads(encode(status))["state"] == "online"


def test_class_names_and_priorities_are_each_others_inverse() -> None:
    """What a reply says is what a request may ask for."""
    for priority in Priority:
        assert decode_request("chat", chat(**{"class": class_name(priority)})).priority is priority  # type: ignore[attr-defined]
