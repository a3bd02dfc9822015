"""Workloads made up at random: when tasks arrive, how long they are, whose they are. The same seed, the same tasks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, repeat
from math import log
from random import Random
from typing import Final, NamedTuple

from msgspec.structs import replace

from llmasos_edge.services.workload import (
    Arrival,
    Header,
    Machine,
    Model,
    PriorityClass,
    Rates,
    Settings,
    Workload,
)

BURST: Final = 12  # tasks that come at once, on average
SPREAD: Final = 0.6  # of lengths: sigma of their logarithm
MAX_TOKENS: Final = 512
KEPT: Final = 0.5  # of the context: a conversation that is longer is followed by a new one
SMOLLM2: Final = Model(  # rounded from what docs/benchmarks.md tells of 2 cores of x86
    name="smollm2-135m",
    context=4096,
    cells=8192,
    most=8192,
    sequences=16,
    cell_bytes=12240,
    bytes=187 << 20,
    pinned=True,
    load_ms=900,
    prepare_ms=4,
    rates=Rates(step_ms=5.0, generate_ms=5.0, prefill_ms=2.5, generate_cell_us=1.5, prefill_cell_us=0.2),
)
SETTINGS: Final = Settings("priority", 200, 150, 5000, "cost")
MACHINE: Final = Machine(cores=2, budget=1496 << 20, arena=256 << 20, swap=2 << 30, models=(SMOLLM2,))


class Kind(NamedTuple):
    """A kind of task: how often it comes, and the medians of its lengths."""

    share: float
    priority: PriorityClass
    prompt: int
    output: int
    deadline_ms: int | None = None


KINDS: Final = (
    Kind(0.03, "critical", 120, 30, 10_000),
    Kind(0.37, "interactive", 90, 60),
    Kind(0.40, "normal", 220, 100, 60_000),
    Kind(0.20, "batch", 900, 160),
)
LENGTHS: Final[Mapping[str, float]] = {"mixed": SPREAD, "fixed": 0.0}


@dataclass(frozen=True, slots=True)
class Recipe:
    """`load` 1: as much work as the machine can do with all its sequences in use. `sessions`: the share of tasks that
    are turns of conversations.
    """

    pattern: str = "poisson"
    tasks: int = 1000
    load: float = 0.9
    lengths: str = "mixed"
    clients: int = 8
    sessions: float = 0.0
    seed: int = 1


def generate(recipe: Recipe, machine: Machine = MACHINE, settings: Settings = SETTINGS) -> Workload:
    chance = Random(recipe.seed)
    drafts = [_draft(chance, recipe, machine) for _ in range(recipe.tasks)]
    if recipe.sessions:
        drafts = list(_conversations(drafts, chance, recipe.sessions, machine))
    models = {model.name: model for model in machine.models}
    interval = sum(_cost(draft, models[draft.model]) for draft in drafts) / max(1, len(drafts)) / recipe.load
    moments = accumulate(gap * interval for gap in PATTERNS[recipe.pattern](chance))
    arrivals = [replace(draft, arrival_ms=round(moment)) for draft, moment in zip(drafts, moments, strict=False)]
    made_by = f"llmasos-simulate: {recipe.pattern}, {recipe.lengths} lengths, load {recipe.load:g}, seed {recipe.seed}"
    return Workload(Header(1, made_by, machine, settings), arrivals)


def _draft(chance: Random, recipe: Recipe, machine: Machine) -> Arrival:
    """A task that has yet to be given its moment."""
    kind = chance.choices(KINDS, [each.share for each in KINDS])[0]
    model, sigma = chance.choice(machine.models), LENGTHS[recipe.lengths]
    output = min(MAX_TOKENS, _length(chance, kind.output, sigma))
    return Arrival(
        arrival_ms=0,
        client=f"client-{chance.randrange(recipe.clients) + 1}",
        model=model.name,
        prompt=min(_length(chance, kind.prompt, sigma), max(1, model.context - output - 1)),
        output=output,
        max_tokens=MAX_TOKENS,
        priority=kind.priority,
        deadline_ms=kind.deadline_ms,
    )


def _length(chance: Random, median: int, sigma: float) -> int:
    return max(1, round(chance.lognormvariate(log(median), sigma)))


def _conversations(drafts: Iterable[Arrival], chance: Random, share: float, machine: Machine) -> Iterator[Arrival]:
    """Makes some of them turns: a prompt is then all that was said before, and what is new."""
    most = {model.name: int(model.context * KEPT) for model in machine.models}
    said: dict[tuple[str, str], tuple[int, int]] = {}  # of a client and a model: the session's number, and its tokens
    for draft in drafts:
        if chance.random() >= share:
            yield draft
            continue
        number, before = said.get((draft.client, draft.model), (1, 0))
        if before + draft.prompt + draft.output > most[draft.model]:
            number, before = number + 1, 0
        prompt = before + min(draft.prompt, most[draft.model])
        said[draft.client, draft.model] = number, prompt + draft.output
        yield replace(draft, prompt=prompt, session=f"{draft.model}-{number}")


def _cost(draft: Arrival, model: Model) -> float:
    """Milliseconds of the machine that it takes when all sequences are in use."""
    rates = model.rates
    cells = draft.prompt + draft.output / 2
    decode = rates.step_ms / model.sequences + rates.generate_ms + rates.generate_cell_us * cells / 1000
    return draft.output * decode + draft.prompt * (rates.prefill_ms + rates.prefill_cell_us * draft.prompt / 2000)


# ---- patterns: the gaps between arrivals, 1 on average


def _poisson(chance: Random) -> Iterator[float]:
    while True:
        yield chance.expovariate(1.0)


def _bursts(chance: Random) -> Iterator[float]:
    """So many at once, then nobody for a while."""
    while True:
        size = 1 + int(chance.expovariate(1.0 / BURST))
        yield chance.expovariate(1.0) * size
        yield from repeat(0.0, size - 1)


def _steady(_: Random) -> Iterator[float]:
    return repeat(1.0)


PATTERNS: Final[Mapping[str, Callable[[Random], Iterator[float]]]] = {
    "poisson": _poisson,
    "bursts": _bursts,
    "steady": _steady,
}
