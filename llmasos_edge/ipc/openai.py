"""The messages of OpenAI's API as far as they are served here: chat completions become `chat` requests, and replies
become completions, chunks of a stream, or errors.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from llmasos_edge.errors import BadRequest, LLMasOSError
from llmasos_edge.ipc.messages import ChatRequest, OkReply, Usage, decode_request

TIERS: Final = {"priority": "interactive", "default": "normal", "auto": "normal", "flex": "batch"}
TIER_OF: Final = {"critical": "priority", "interactive": "priority", "normal": "default", "batch": "flex"}
SAME: Final = frozenset(
    {"messages", "model", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "session", "class", "deadline_ms"}
)
OWN: Final = frozenset(
    {"stream", "stream_options", "max_tokens", "max_completion_tokens", "service_tier", "response_format"}
)
# What would change the answer and is not served, with the values that ask for nothing.
NOT_SERVED: Final[Mapping[str, tuple[object, ...]]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
}
# What does not change it: taken, and not used.
HARMLESS: Final = frozenset(
    {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
    | {"prediction", "parallel_tool_calls"}
)
NOT_IN_MESSAGES: Final = ("name", "tool_calls", "tool_call_id", "function_call", "refusal", "audio", "annotations")
STATUS: Final[Mapping[str, int]] = {
    "bad_request": 400,
    "prompt_too_long": 400,
    "not_permitted": 403,
    "unknown_model": 404,
    "unknown_app": 404,
    "unknown_task": 404,
    "unknown_session": 404,
    "cancelled": 409,
    "queue_full": 429,
    "no_memory": 503,
    "shutting_down": 503,
    "deadline_exceeded": 504,
}
TYPES: Final[Mapping[int, str]] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_FIELD: Final = re.compile(r"([a-z_]+(?:\[[^]]*\]|\.[\w.]+)*): ")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """`chat` is the same as a request of ours; `usage`: a stream ends with what was used."""

    chat: ChatRequest
    stream: bool
    usage: bool


def decode_completion(body: bytes) -> CompletionRequest:
    """The body of a chat completion. BadRequest names the field."""
    try:
        given = msgspec.json.decode(body)
    except RecursionError:
        raise BadRequest("body: nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"body: not valid JSON ({error})") from None
    if not isinstance(given, dict):
        raise BadRequest("body: expected an object")
    asked = {name: value for name, value in given.items() if value is not None}
    for name, value in asked.items():
        _check_served(name, value)
    options = _options(asked)
    chat = {name: asked[name] for name in SAME if name in asked} | _renamed(asked)
    if isinstance(chat.get("messages"), list):
        chat["messages"] = [_message(message, f"messages[{at}]") for at, message in enumerate(chat["messages"])]
    request = decode_request("chat", msgspec.json.encode(chat))
    if not isinstance(request, ChatRequest):
        raise TypeError(f"decode_completion: {type(request).__name__}")
    return CompletionRequest(request, _flag(asked, "stream"), _flag(options, "include_usage", "stream_options."))


def _check_served(name: str, value: object) -> None:
    if name in NOT_SERVED and value not in NOT_SERVED[name]:
        raise BadRequest(f"{name}: not served by this version: leave it out")
    known = SAME | OWN | HARMLESS | NOT_SERVED.keys()
    if name not in known:
        near = difflib.get_close_matches(name[:64], known, n=1)
        raise BadRequest(f"{name[:64]}: unknown field{f', did you mean {near[0]!r}?' if near else ''}")


def _renamed(asked: Json) -> Json:
    """What has another name with us."""
    renamed: Json = {}
    tokens = asked.get("max_completion_tokens", asked.get("max_tokens"))
    if tokens is not None:
        renamed["max_tokens"] = tokens
    if "service_tier" in asked and "class" not in asked:
        tier = asked["service_tier"]
        if not isinstance(tier, str) or tier not in TIERS:
            raise BadRequest(f"service_tier: must be one of {', '.join(TIERS)}")
        renamed["class"] = TIERS[tier]
    if "response_format" in asked and (form := _format(asked["response_format"])) is not None:
        renamed["format"] = form
    return renamed


def _format(wanted: object) -> object:
    """A `response_format` as our `format`; None for plain text."""
    match wanted:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return "json"
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema
        case {"type": "json_schema"}:
            raise BadRequest("response_format.json_schema.schema: missing, or not an object")
        case _:
            raise BadRequest("response_format.type: must be one of text, json_object, json_schema")


def _options(asked: Json) -> Json:
    options = asked.get("stream_options", {})
    if not isinstance(options, dict):
        raise BadRequest("stream_options: expected an object")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):  # the latter pads what goes over a network; not here
            raise BadRequest(f"stream_options.{name[:64]}: unknown field")
    return options


def _flag(given: Json, name: str, path: str = "") -> bool:
    value = given.get(name) or False
    if not isinstance(value, bool):
        raise BadRequest(f"{path}{name}: expected true or false")
    return value


def _message(message: object, path: str) -> object:
    """With its text in one piece, and without fields that say nothing."""
    if not isinstance(message, dict):
        raise BadRequest(f"{path}: expected an object")
    for name in NOT_IN_MESSAGES:
        if message.get(name) not in (None, []):
            raise BadRequest(f"{path}.{name}: not served by this version: leave it out")
    said = {name: value for name, value in message.items() if name not in NOT_IN_MESSAGES}
    if said.get("role") == "developer":
        said["role"] = "system"
    if isinstance(said.get("content"), list):
        said["content"] = "\n".join(_text(part, f"{path}.content[{at}]") for at, part in enumerate(said["content"]))
    return said


def _text(part: object, path: str) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": str(kind)} if kind != "text":
            raise BadRequest(f"{path}.type: {kind[:32]!r} is not served by this version: text alone")
        case _:
            raise BadRequest(f'{path}: expected {{"type": "text", "text": TEXT}}')


def completion(reply: OkReply, model: str, created: int) -> bytes:
    """A whole answer."""
    message = {"role": "assistant", "content": reply.output.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.output.finish_reason}
    shape = _head(reply.task, "chat.completion", model, created)
    return msgspec.json.encode(shape | {"choices": [choice], "usage": _usage(reply.usage)} | _class(reply))


class Chunks:
    """The events of one stream: what is the same in all of them is made once."""

    def __init__(self, task: str, model: str, created: int, *, usage: bool) -> None:
        self._head = _head(task, "chat.completion.chunk", model, created)
        self._usage = usage
        around = self._event([{"index": 0, "delta": {"content": None}, "finish_reason": None}], None)
        self._before, self._after = around.split(b'"content":null', 1)
        self._begun = False

    def text(self, text: str) -> bytes:
        """A piece of the answer; the first one says whose it is."""
        role, self._begun = b"" if self._begun else b'"role":"assistant",', True
        return b'%b%b"content":%b%b' % (self._before, role, msgspec.json.encode(text), self._after)

    def end(self, reply: OkReply) -> bytes:
        """Why it ends, what was used if that was asked for, and that nothing follows."""
        choices = [{"index": 0, "delta": {}, "finish_reason": reply.output.finish_reason}]
        last = self._event(choices, None, _class(reply))
        if self._usage:
            last += self._event([], _usage(reply.usage))
        return last + b"data: [DONE]\n\n"

    def _event(self, choices: list[Json], usage: Json | None, more: Mapping[str, object] = {}) -> bytes:
        shape = {**self._head, "choices": choices, **more}
        if self._usage:
            shape["usage"] = usage
        return b"data: %b\n\n" % msgspec.json.encode(shape)


def failed_event(error: LLMasOSError) -> bytes:
    """The end of a stream that can't go on."""
    return b"data: %b\n\n" % error_body(error)


def position_comment(position: int, eta_ms: int) -> bytes:
    """What a waiting stream is told; clients skip comments."""
    return b": position %d, eta_ms %d\n\n" % (position, eta_ms)


def model_list(models: list[str], created: int) -> bytes:
    rows = [{"id": model, "object": "model", "created": created, "owned_by": "llmasos"} for model in models]
    return msgspec.json.encode({"object": "list", "data": rows})


def error_body(error: LLMasOSError, status: int | None = None) -> bytes:
    """An error in OpenAI's shape, with our code; `details` as on MQTT."""
    status = status or status_of(error)
    field = _FIELD.match(error.message) if error.code == "bad_request" else None
    shape: Json = {
        "message": error.message,
        "type": TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "code": error.code,
        "param": field.group(1) if field else None,
    }
    if error.retry_after_ms is not None:
        shape["retry_after_ms"] = error.retry_after_ms
    if error.details is not None:
        shape["details"] = error.details
    return msgspec.json.encode({"error": shape})


def status_of(error: LLMasOSError) -> int:
    return STATUS.get(error.code, 500)


def _head(task: str | None, kind: str, model: str, created: int) -> Json:
    return {"id": f"chatcmpl-{task}", "object": kind, "created": created, "model": model}


def _class(reply: OkReply) -> Json:
    """The class that it ran in, which may be lower than the one asked for."""
    return {"service_tier": TIER_OF[reply.klass], "class": reply.klass}


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
