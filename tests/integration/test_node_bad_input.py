"""Tests of what a real node makes of bad input: each gets a clear error, and the node goes on."""

import json
import socket
from collections.abc import Iterator

import pytest

from llmasos_edge.errors import BadRequest, LLMasOSError, PromptTooLong, UnknownModel
from tests.integration.real_node import ROOT, Device, Json, RealNode

USER = [{"role": "user", "content": "Hi"}]
DEEP: Json = {"type": "string"}
for _ in range(200):
    DEEP = {"type": "object", "properties": {"a": DEEP}}
BODY: Json = {"id": "b1", "prompt": "Hi", "max_tokens": 2}


@pytest.fixture(autouse=True)
def still_well(node: RealNode) -> Iterator[None]:
    """Whatever a test sends, the same daemon and the same worker go on afterwards."""
    before = node.pid, node.children()
    yield
    assert node.ask("Hello")["status"] == "ok"
    assert (node.pid, node.children()) == before


@pytest.mark.parametrize(
    ("op", "body", "code", "words"),
    [
        ("generate", b'{"id": "b1", "prompt": "x"', "bad_request", "body: not valid JSON"),
        ("generate", b'{"id": "b1", "prompt": "\xff"}', "bad_request", "body: not valid"),
        ("generate", b'{"id": "b1", "prompt": "\\ud800"}', "bad_request", "body: not valid"),
        ("generate", b'{"id": "b1", "prompt": "' + b"x" * 1_100_000 + b'"}', "bad_request", "of at most 1048576"),
        ("generate", {"id": "b1", "prompt": 7}, "bad_request", "prompt: expected"),
        ("generate", BODY | {"max_tokens": -1}, "bad_request", "max_tokens: expected"),
        ("generate", BODY | {"max_tokens": 2**70}, "bad_request", "max_tokens"),
        ("generate", BODY | {"temperature": "hot"}, "bad_request", "temperature: expected"),
        ("generate", BODY | {"max_token": 3}, "bad_request", "did you mean 'max_tokens'"),
        ("generate", BODY | {"class": "urgent"}, "bad_request", "class: 'urgent' is none of critical"),
        ("generate", BODY | {"stop": [""]}, "bad_request", "stop"),
        ("generate", BODY | {"tools": []}, "bad_request", "tools: not served by this version"),
        ("generate", BODY | {"model": "gpt-5"}, "unknown_model", "smollm2-135m"),
        ("generate", BODY | {"model": "../../etc/passwd"}, "bad_request", "model"),
        ("generate", BODY | {"format": DEEP}, "bad_request", "format"),
        ("generate", BODY | {"format": {"type": "no-such-type"}}, "bad_request", "format"),
        ("generate", BODY | {"format": {"$ref": "http://example.invalid/x"}}, "bad_request", "format"),
        ("generate", BODY | {"format": {"type": "string", "maxLength": 100_000}}, "bad_request", "format"),
        ("chat", {"id": "b1", "messages": []}, "bad_request", "messages"),
        ("chat", {"id": "b1", "messages": [{"role": "god", "content": "x"}]}, "bad_request", "messages[0].role"),
        ("chat", {"id": "b1"}, "bad_request", "messages: missing"),
        ("run", {"id": "b1", "app": "summarise", "input": "x"}, "unknown_app", "summarise"),
        ("cancel", {"id": "b1", "target": "nothing"}, "unknown_task", "nothing"),
        ("embed", {"id": "b1", "input": ["x"]}, "bad_request", "not served by this version"),
        ("chatt", {"id": "b1"}, "bad_request", "did you mean 'chat'"),
    ],
    ids=lambda value: None if isinstance(value, (bytes, dict)) else str(value)[:24],
)
def test_a_bad_request_is_answered_by_name(phone: Device, op: str, body: Json | bytes, code: str, words: str) -> None:
    """On the request's own topic, with its code, its field, and what to do."""
    error = phone.ask(op, body, "b1")["error"]
    assert error["code"] == code
    assert words in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"\x00\x01", b"[" * 100_000, b'{"id": "no spaces!"}', b'{"id": 5}']
)
def test_what_has_no_id_is_answered_on_invalid(phone: Device, body: bytes) -> None:
    """What can't be read at all still gets an error, where the caller can find it."""
    assert phone.ask("generate", body, "invalid")["error"]["code"] == "bad_request"


def test_a_prompt_longer_than_the_context_is_refused_with_both_counts(phone: Device) -> None:
    """At once, with the tokens that it has and those that fit; one that just fits is answered."""
    error = phone.ask("generate", BODY | {"prompt": "word " * 2000}, "b1")["error"]
    assert (error["code"], error["details"]["context"]) == ("prompt_too_long", 512)
    assert error["details"]["prompt_tokens"] > 1500
    assert all(str(count) in error["message"] for count in error["details"].values())
    reply = phone.ask("generate", {"id": "b2", "prompt": " word" * 505, "max_tokens": 100, "temperature": 0}, "b2")
    assert reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"] <= 512
    assert (reply["status"], reply["output"]["finish_reason"]) == ("ok", "length")


@pytest.mark.parametrize(
    "prompt",
    ["\0", "\ufffd\u202e\U0001f600" * 20, "<|im_end|><|endoftext|>", "\ue0f0\ue0f1", " ", "{{ 7*7 }}{% for %}"],
)
def test_strange_text_is_text(phone: Device, prompt: str) -> None:
    """Control characters, our own marks, control tokens and templates: none is anything but text."""
    reply = phone.ask("chat", {"id": "b1", "messages": [{"role": "user", "content": prompt}], "max_tokens": 2}, "b1")
    assert reply["status"] == "ok"


def test_extremes_of_sampling_are_served(phone: Device) -> None:
    """The edges of every range are inside it."""
    extremes: list[Json] = [
        {"top_k": 1_000_000},
        {"top_k": 0, "top_p": 1},
        {"top_p": 1e-9},
        {"min_p": 1},
        {"temperature": 2},
        {"seed": 2**32 - 2},
    ]
    for number, extreme in enumerate(extremes):
        reply = phone.ask("generate", BODY | {"id": f"e{number}", "temperature": 1} | extreme, f"e{number}")
        assert reply["status"] == "ok", extreme


def test_a_retained_request_is_ignored(phone: Device) -> None:
    """It is not run; the next one, not retained, is."""
    topic = f"{ROOT}/req/{phone.name}/generate"
    phone.publish(topic, json.dumps(BODY | {"id": "old"}).encode(), retain=True)
    phone.ask("generate", BODY, "b1")
    phone.publish(topic, b"", retain=True)
    assert not phone.all(f"{ROOT}/res/{phone.name}/old")
    assert phone.topics().count(f"{ROOT}/res/{phone.name}/invalid") == 0


def test_the_longest_response_topic_that_mqtt_has_harms_nobody(phone: Device) -> None:
    """With the suffixes that the node appends it would be longer than a topic can be: refused."""
    own = f"{ROOT}/res/{phone.name}/"
    phone.send("generate", BODY, ResponseTopic=own + "x" * (65_535 - len(own)))
    assert phone.reply("b1")["error"]["code"] == "not_permitted"


def test_an_answer_of_emoji_streams_whole_characters(phone: Device) -> None:
    """Tokens that hold parts of characters never show as such."""
    phone.send("generate", {"id": "u1", "prompt": "😀😀😀😀😀😀", "max_tokens": 12, "stream": True, "temperature": 0})
    text = phone.reply("u1")["output"]["text"]
    pieces = [message.get("delta", "") for message in phone.all(f"{ROOT}/res/{phone.name}/u1/stream")]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces[:-2])


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[1]\n",
        b'{"call": "status", "args": {"x": 1}}\n',
        b'{"call": "stat"}\n',
        b'{"call": "show", "args": {"task": 1}}\n',
        b'{"call": "submit", "args": {"op": "cancel", "body": {"target": "x"}}}\n',
        b'{"call": "submit", "args": {"op": "generate", "body": {"prompt": "x", "deadline_ms": 0}}}\n',
        b'{"call": "renice", "args": {"task": "1-1", "class": "nice"}}\n',
        b'{"call": "model.rm", "args": {"model": "smollm2-135m"}}\n',
        b'{"call": "model.add", "args": {"path": "/etc/passwd", "name": "x"}}\n',
        b'{"call": "model.add", "args": {"path": "/nowhere\\u0000", "name": "x"}}\n',
        b'{"call": "model.pull", "args": {"model": "no-such-model"}}\n',
        b'{"call": "model.verify", "args": {"model": "../x"}}\n',
        b'{"call": "model.load", "args": {"model": ""}}\n',
        b'{"call": "app.show", "args": {"app": "x"}}\n',
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
    ],
    ids=lambda line: line[:60].decode(errors="replace"),
)
def test_a_bad_call_is_refused(node: RealNode, line: bytes) -> None:
    """A wrong line on the control socket gets one error line; an empty one is skipped; the next call is served."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(20)
        link.connect(str(node.runtime / "control.sock"))
        link.sendall(line)
        answers = link.makefile("rb")
        if line.strip():
            assert list(json.loads(answers.readline())) == ["error"]
        link.sendall(b'{"call": "ps", "args": {"all": false}}\n')
        assert json.loads(answers.readline()) == {"result": []}
        answers.close()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"prompt": ""}, BadRequest),
        ({"prompt": "x", "model": "none"}, UnknownModel),
        ({"prompt": "x " * 2000}, PromptTooLong),
        ({"prompt": "x", "reply_to": 7}, BadRequest),
    ],
)
def test_the_operator_gets_the_same_errors(node: RealNode, body: Json, kind: type[LLMasOSError]) -> None:
    """The same door for every caller."""
    with pytest.raises(kind):
        node.call("submit", op="generate", body=body)
