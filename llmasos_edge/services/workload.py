"""The workload file: JSON lines, a header that tells of a machine and its models, and a line for each task.

It holds lengths, never a prompt or an answer. A node records one, `llmasos-simulate` reads or makes one.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from llmasos_edge.errors import ConfigError

LINE_MOST: Final = 1 << 16  # bytes
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Cost = Annotated[float, Meta(ge=0)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
PriorityClass = Literal["critical", "interactive", "normal", "batch"]


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a step costs: in any case, for each generated and each prompt token, and for each cell they attend to."""

    step_ms: Annotated[float, Meta(gt=0)]
    generate_ms: Cost
    prefill_ms: Cost
    generate_cell_us: Cost
    prefill_cell_us: Cost


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`bytes`: what it takes beside its cells; `cells`, and `most` that it may get (0: it keeps what it has)."""

    name: Name
    context: Positive
    cells: Positive
    most: Count
    sequences: Positive
    cell_bytes: Positive
    bytes: Count
    pinned: bool
    load_ms: Cost
    prepare_ms: Cost  # from its submission until a prompt is tokenised
    rates: Rates


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`budget`: bytes for the models and the arena; `swap` 0: no swap file."""

    cores: Positive
    budget: Positive
    arena: Count
    swap: Count
    models: Annotated[tuple[Model, ...], Meta(min_length=1)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The scheduler's, as a node file has them."""

    policy: str
    quantum_ms: Positive
    decode_target_ms: Positive
    model_wait_ms: Count
    replacement: str


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line. `made_by`: the program, and how it came by the tasks."""

    workload: Literal[1]
    made_by: str
    machine: Machine
    settings: Settings


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What happened on the node: `ended` is `ok` or an error's code; `response_ms`: until the first token."""

    ended: str
    turnaround_ms: Count
    waiting_ms: Count
    response_ms: Count | None = None
    preemptions: Count = 0


class Arrival(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename={"priority": "class"}
):
    """A task as it was, or is to be, submitted. `cached`: tokens of the prompt that need not be computed; `output`: as
    many as it says until it stops by itself, if `max_tokens` lets it.
    """

    arrival_ms: Count
    client: Name
    model: Name
    prompt: Positive
    output: Count
    max_tokens: Positive
    priority: PriorityClass = "normal"
    cached: Count = 0
    session: Name | None = None
    app: Name | None = None
    deadline_ms: Count | None = None
    outcome: Outcome | None = None


class Workload(NamedTuple):
    header: Header
    arrivals: list[Arrival]  # in the order of their moments


T = TypeVar("T")
_header: Final = msgspec.json.Decoder(Header)
_arrival: Final = msgspec.json.Decoder(Arrival)
_encoder: Final = msgspec.json.Encoder()


def line(item: Header | Arrival) -> bytes:
    return _encoder.encode(item) + b"\n"


def write(path: Path, workload: Workload) -> None:
    """Raises ConfigError if the file can't be written."""
    try:
        with path.open("wb") as file:
            file.write(line(workload.header))
            file.writelines(map(line, workload.arrivals))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def read(path: Path) -> Workload:
    """Raises ConfigError, with file and line."""
    try:
        with path.open("rb") as file:
            lines = _lines(path, file)
            where, text = next(lines, (f"{path}:1", b""))
            header = _decode(where, text, _header)
            contexts = {model.name: model.context for model in header.machine.models}
            arrivals = [_checked(where, _decode(where, text, _arrival), contexts) for where, text in lines]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    return Workload(header, sorted(arrivals, key=lambda arrival: arrival.arrival_ms))


def _lines(path: Path, file: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Each with its place."""
    for number, text in enumerate(file, 1):
        if len(text) > LINE_MOST:
            raise ConfigError(f"{path}:{number}: the line is longer than {LINE_MOST} bytes")
        if text.strip():
            yield f"{path}:{number}", text


def _decode(where: str, text: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _checked(where: str, arrival: Arrival, contexts: Mapping[str, int]) -> Arrival:
    """What the line can't tell by itself."""
    context = contexts.get(arrival.model)
    if context is None:
        raise ConfigError(f"{where}: `$.model`: the header has no {arrival.model!r}, only {', '.join(contexts)}")
    if arrival.prompt >= context:
        raise ConfigError(
            f"{where}: `$.prompt`: {arrival.prompt} tokens, and the context of {arrival.model} is {context}"
        )
    return arrival
