"""The messages between daemon and worker: frames of MessagePack on a stream socket, strict on both sides.

A frame is a 4-byte big-endian length and `[name, fields]`. What the kernel defines (hal) travels as it is.
"""

import socket
import struct
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from llmasos_edge.errors import Panic
from llmasos_edge.kernel import hal
from llmasos_edge.kernel.units import ModelId, SequenceId, TaskId, Tokens

FRAME_MAX: Final = 8 << 20
_LENGTH: Final = struct.Struct(">I")


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation; `content` is a person's or a model's text, never markup."""

    role: str
    content: str


def system_part(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The system messages that a conversation begins with."""
    return messages[: next((at for at, message in enumerate(messages) if message.role != "system"), len(messages))]


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How tokens are chosen; temperature 0 is greedy. The seed is always resolved."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    seed: int = 0
    stop: tuple[str, ...] = ()


class Program(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a task runs: a conversation or a bare prompt, how to sample, and the form of the answer.

    `format` is None, "json", or a JSON schema. `owner` names whose computed prefixes it may share. `public`: the
    system messages that it begins with are the node's own, the same for everyone.
    """

    sampling: Sampling
    max_tokens: int
    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    format: str | dict[str, Any] | None = None
    owner: str = ""
    public: bool = False


class Load(msgspec.Struct, frozen=True):
    """The first message to a worker. `kv` is q8_0 or f16; `cells` is the context's n_ctx; `repack`: see LlamaModel."""

    model: ModelId
    path: str
    context: int
    cells: int
    sequences: int
    kv: str
    exact: bool
    threads: int
    repack: bool = False


class Prepare(msgspec.Struct, frozen=True):
    task: TaskId
    program: Program


class SwitchIn(msgspec.Struct, frozen=True):
    task: TaskId
    sequence: SequenceId
    pieces: tuple[hal.Piece, ...] = ()


class SwitchOut(msgspec.Struct, frozen=True):
    task: TaskId
    save: hal.Save | None = None


class Forget(msgspec.Struct, frozen=True):
    task: TaskId


class Resize(msgspec.Struct, frozen=True):
    """Make the context anew with another number of cells."""

    cells: Tokens


Command = Load | Prepare | SwitchIn | SwitchOut | Forget | Resize | hal.Quantum
Answer = hal.Event
_TYPES: Final[dict[str, Any]] = {
    kind.__name__: kind
    for kind in (
        *(Load, Prepare, SwitchIn, SwitchOut, Forget, Resize, hal.Quantum),
        *(hal.Loading, hal.Loaded, hal.Died, hal.Prepared, hal.Refused, hal.Report, hal.Finished),
        *(hal.Saved, hal.Restored, hal.Resized),
    )
}


def encode(message: Command | Answer) -> bytes:
    body = msgspec.msgpack.encode((type(message).__name__, message))
    if len(body) > FRAME_MAX:
        raise Panic(f"protocol.encode: a {type(message).__name__} of {len(body)} bytes")
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._decoder = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])

    def feed(self, data: bytes) -> Iterator[Command | Answer]:
        """The messages that `data` completes. Raises msgspec.DecodeError for what is none of ours."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer)
            if size > FRAME_MAX:
                raise msgspec.DecodeError(f"a frame of {size} bytes")
            end = _LENGTH.size + size
            if len(self._buffer) < end:
                return
            name, fields = self._decoder.decode(bytes(self._buffer[_LENGTH.size : end]))
            del self._buffer[:end]
            if name not in _TYPES:
                raise msgspec.DecodeError(f"an unknown message {name!r}")
            yield msgspec.msgpack.decode(fields, type=_TYPES[name])


def send(connection: socket.socket, message: Command | Answer) -> None:
    """Send a whole frame; blocks while the peer is slow. Raises OSError."""
    connection.sendall(encode(message))
