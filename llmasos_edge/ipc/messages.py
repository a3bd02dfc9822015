"""The requests that callers send and the replies that they get: one struct per message, decoded strictly.

Sizes: a body has at most MAX_BODY bytes. Numbers, names and lists are bounded here; what a model can take is not.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from llmasos_edge.errors import BadRequest
from llmasos_edge.ipc.schema import check_schema
from llmasos_edge.kernel.units import Priority

DEFAULT_MAX_TOKENS = 256
DEFAULT_TEMPERATURE = 0.7
DEFAULT_PRIORITY = Priority.NORMAL
MAX_BODY = 1024 * 1024
MAX_INPUT_DEPTH = 32

ClassName = Literal["critical", "interactive", "normal", "batch"]
NodeState = Literal["online", "offline", "stopped", "degraded"]
Identifier = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every request may carry."""

    id: Identifier | None = None
    reply_to: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None


class Generation(Request, frozen=True, kw_only=True):
    """What every request for text may carry; None means that the default of the app or of this module holds."""

    model: Name | None = None
    session: Identifier | None = None
    stream: bool = False
    klass: ClassName | None = msgspec.field(name="class", default=None)
    deadline_ms: Annotated[int, Meta(ge=1, le=7 * 86_400_000)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**32 - 2)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=8)] | None = None
    format: Literal["json"] | dict[str, Any] | None = None

    @property
    def priority(self) -> Priority | None:
        """The priority class that was asked for."""
        return None if self.klass is None else Priority[self.klass.upper()]

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, as a tuple whichever way they were written."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Message(Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class ChatRequest(Generation, frozen=True, kw_only=True):
    """`chat`: the next answer of a conversation."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=1024)]


class GenerateRequest(Generation, frozen=True, kw_only=True):
    """`generate`: the continuation of a plain text."""

    prompt: Annotated[str, Meta(min_length=1)]


class RunRequest(Generation, frozen=True, kw_only=True):
    """`run`: an app, with its input."""

    app: Name
    input: str | dict[str, Any]


class CancelRequest(Request, frozen=True, kw_only=True):
    """`cancel`: a request of the same client by its id, or a task."""

    target: Identifier


class StatusRequest(Request, frozen=True, kw_only=True):
    """`status`: how the node is."""


class ModelRequest(Request, frozen=True, kw_only=True):
    """`model.load`, `model.drop` or `model.pull`."""

    model: Name


REQUESTS: dict[str, type[Request]] = {
    "chat": ChatRequest,
    "generate": GenerateRequest,
    "run": RunRequest,
    "cancel": CancelRequest,
    "status": StatusRequest,
    "model.load": ModelRequest,
    "model.drop": ModelRequest,
    "model.pull": ModelRequest,
}
LATER_OPS = ("embed", "infer")  # in the contract, not in this version
LATER_FIELDS = ("tools",)
_DECODERS = {op: msgspec.json.Decoder(kind) for op, kind in REQUESTS.items()}


def decode_request(op: str, body: bytes) -> Request:
    """The request in `body` (JSON); BadRequest names the field and says what is expected."""
    decoder = _DECODERS.get(op)
    if decoder is None:
        raise BadRequest(_unknown_op(op))
    if len(body) > MAX_BODY:
        raise BadRequest(f"body: {len(body)} bytes, of at most {MAX_BODY}")
    try:
        request = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BadRequest(_explain(str(error), REQUESTS[op])) from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"body: not valid UTF-8 ({error.reason})") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"body: not valid JSON ({error})") from None
    except RecursionError:
        raise BadRequest("body: nested too deeply") from None
    _check_parts(request)
    return request


def _check_parts(request: Request) -> None:
    """The limits that types can't express."""
    if isinstance(request, Generation) and isinstance(request.format, dict):
        check_schema(request.format)
    if isinstance(request, RunRequest) and _deeper_than(request.input, MAX_INPUT_DEPTH):
        raise BadRequest(f"input: nested more than {MAX_INPUT_DEPTH} levels deep")


def _deeper_than(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = [part for whole in level for part in _parts(whole)]
    return bool(level)


def _parts(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _unknown_op(op: str) -> str:
    if op in LATER_OPS:
        return f"op: {op!r} is not served by this version; it serves {', '.join(REQUESTS)}"
    return f"op: unknown {op[:64]!r}{_did_you_mean(op, REQUESTS)}; the ops are {', '.join(REQUESTS)}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word[:64], list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _explain(error: str, kind: type[Request]) -> str:
    """A decoding error (`Expected X, got Y - at `$.a.b``) with the field first, in the words of the contract."""
    what, _, where = error.partition(" - at ")
    path = where.strip("`").removeprefix("$").removeprefix(".")
    quoted = re.search(r"(?:field|value) [`'](.*)[`']", what, re.DOTALL)
    name = quoted.group(1)[:64] if quoted else ""
    if "unknown field" in what:
        full = f"{path}.{name}" if path else name
        if full in LATER_FIELDS:
            return f"{full}: not served by this version"
        return f"{full}: unknown field{_did_you_mean(name, (Message if path else kind).__struct_encode_fields__)}"
    if "missing required field" in what:
        return f"{path}.{name}: missing" if path else f"{name}: missing"
    if "enum value" in what:
        return f"{path}: {name!r} is none of {_choices(path)}"
    if "matching regex" in what:
        return f"{path}: must match [A-Za-z0-9._-]{{1,64}}"
    return f"{path or 'body'}: {what[0].lower()}{what[1:]}".replace("`", "")


def _choices(path: str) -> str:
    """The values that a field with fixed values takes."""
    match path.rpartition(".")[2]:
        case "class":
            return ", ".join(get_args(ClassName))
        case "role":
            return "system, user, assistant, tool"
        case _:
            return '"json" or a JSON schema'


class _Salvage(Struct):
    id: Any = None
    reply_to: Any = None


_SALVAGE = msgspec.json.Decoder(_Salvage)
_FIRST_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*"([A-Za-z0-9._-]{1,64})"')


def salvage_id(body: bytes) -> str | None:
    """The id of a request that could not be decoded, so that its error can be sent to it; None if it can't be told.

    Of broken JSON only an id that comes first is believed: further in, it might be another object's.
    """
    found = _salvage(body)
    if found is None:
        first = _FIRST_ID.match(body)
        return first.group(1).decode() if first else None
    valid = isinstance(found.id, str) and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", found.id)
    return str(found.id) if valid else None


def salvage_reply_to(body: bytes) -> str | None:
    """The reply topic (not yet checked) of a request that could not be decoded."""
    found = _salvage(body)
    return found.reply_to if found is not None and isinstance(found.reply_to, str) else None


def _salvage(body: bytes) -> _Salvage | None:
    try:
        return _SALVAGE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Output(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was generated; `data` is the decoded answer where a `format` was asked for."""

    text: str
    finish_reason: Literal["stop", "length"]
    data: Any | UnsetType = UNSET


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Timing(Struct, frozen=True, kw_only=True):
    """Milliseconds from receipt, and how often the task was preempted."""

    queued_ms: int
    first_token_ms: int
    total_ms: int
    preemptions: int


class OkReply(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="status", tag="ok"):
    """The final reply of a task that ended well."""

    id: str
    task: str
    node: str
    output: Output
    usage: Usage
    timing: Timing
    klass: ClassName = msgspec.field(name="class")


class DoneReply(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="status", tag="ok"):
    """The final reply of an operation that is no task: cancel, status, model.*; `output` is its result."""

    id: str
    node: str
    output: dict[str, Any]


class ErrorReply(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="status", tag="error"):
    """The final reply of what failed; `error` is `LLMasOSError.wire()`, and there is no id if none could be read."""

    id: str | None = None
    task: str | None = None
    node: str | None = None
    error: dict[str, object]


class Accepted(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The node has the request on disk; `eta_ms` is there once there is something to estimate it from."""

    task: str
    position: int
    eta_ms: int | None = None


class StreamDelta(Struct, frozen=True, kw_only=True):
    """A piece of an answer; `attempt` counts from 1, and each starts at seq 0."""

    seq: int
    delta: str
    attempt: int


class StreamDone(Struct, frozen=True, kw_only=True):
    """The end of a stream."""

    seq: int
    done: Literal[True]


class NodeStatus(Struct, frozen=True, kw_only=True):
    """The retained status; `since` is UTC, RFC 3339."""

    state: NodeState
    boot_id: str
    version: str
    since: str


def encode(message: OkReply | DoneReply | ErrorReply | Accepted | StreamDelta | StreamDone | NodeStatus) -> bytes:
    """A message as it goes over the wire: JSON, UTF-8, without what is None."""
    return msgspec.json.encode(message)


def class_name(priority: Priority) -> ClassName:
    """A priority class as callers write it."""
    names: dict[Priority, ClassName] = {
        Priority.BATCH: "batch",
        Priority.NORMAL: "normal",
        Priority.INTERACTIVE: "interactive",
        Priority.CRITICAL: "critical",
    }
    return names[priority]
