"""Sessions to measure with: pieces of the project's own documents, of given lengths in tokens, the same for a seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from benchmarks.chat import Messages
from benchmarks.node import ROOT, model_file
from llmasos_edge.engine.llama import LlamaModel

SHORT: Final = 500  # tokens of a session's first prompt
LONG: Final = 1500
LONG_EVERY: Final = 3  # each third session is a long one
FRAME: Final = 42  # tokens of a prompt that the chat template writes, at most
QUESTIONS: Final = (
    "What is the most important word in it?",
    "Say that in one short sentence.",
    "Which part of it would you leave out?",
    "What should I read next?",
    "Why is that so?",
)


@dataclass(slots=True)
class Conversation:
    """`messages` is what was said so far; `long`: its first prompt has LONG tokens."""

    name: str
    messages: list[dict[str, str]] = field(default_factory=list)
    long: bool = False

    def ask(self, text: str) -> Messages:
        """The user's next turn; it alone."""
        self.messages.append({"role": "user", "content": text})
        return self.messages[-1:]

    def answered(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})


class Tokenizer(Protocol):
    def of(self, text: str) -> Sequence[int]: ...


class Tokens:
    """The model's tokenizer."""

    def __init__(self) -> None:
        self._model = LlamaModel(model_file())

    def of(self, text: str) -> Sequence[int]:
        return self._model.tokenize(text, special=False)

    def cut(self, text: str, tokens: int) -> str:
        """As many words of its beginning as have that many tokens, or one or two fewer."""
        pieces = self.of(text[: tokens * 8])[:tokens]
        kept = b"".join(map(self._model.piece, pieces)).decode(errors="ignore")
        return kept.rpartition(" ")[0]


def opening(number: int, tokens: int, text: str, seed: int, measure: Tokens) -> str:
    """The first turn of a session: a passage from somewhere in `text`."""
    at = text.index(" ", random.Random(f"{seed}/{number}").randrange(len(text) // 2))
    return measure.cut(f"Note {number + 1000} says: {text[at:]}", tokens - FRAME)


def lengths(count: int, seed: int) -> list[int]:
    """Tokens of each session's first prompt."""
    chance = random.Random(seed)
    return [LONG if number % LONG_EVERY == 0 else chance.randint(SHORT, LONG) for number in range(count)]


def documents() -> str:
    """Some 25,000 tokens of plain prose."""
    return "\n".join(path.read_text() for path in sorted(ROOT.glob("docs/**/*.md")))
