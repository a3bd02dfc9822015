"""Chat templates: the model's own Jinja, rendered in a sandbox and tokenised so that nobody forges control tokens."""

from __future__ import annotations  # array[int] exists for the type checker only

import sys
from array import array
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Final, Protocol, Self

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmasos_edge.engine.protocol import Message, system_part
from llmasos_edge.errors import BadRequest, EngineFailed

OPEN, CLOSE = "\ue0f0", "\ue0f1"  # private-use marks around what callers wrote
FIRST = "\ue0f2"  # and before the first of it that is no leading system message
_MARKS: Final = str.maketrans("", "", OPEN + CLOSE + FIRST)
Pieces = list[tuple[str, bool]]  # text, and whether it is markup
LINES_MAX: Final = 300_000  # lines of Python that a template may execute
TEMPLATE_FAULTS: Final = (  # what a template can raise, besides its own refusals
    *(TemplateError, TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError, MemoryError),
)
PROMPT_MAX: Final = 4 << 20  # characters that a template may render
CHATML: Final = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Tokenizer(Protocol):
    def tokenize(self, text: str, *, special: bool, begin: bool = False) -> array[int]: ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation in tokens. The first `system` of them come before the first message that is no leading system
    message; `written`: what a caller wrote is among those.
    """

    tokens: array[int]
    system: int
    written: bool


class ChatTemplate:
    """A template from a GGUF is untrusted code: it reaches no attribute of a Python object, and changes nothing."""

    def __init__(self, source: str | None, *, bos: str, eos: str) -> None:
        """Raises EngineFailed if the template does not compile; without one, ChatML is used."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
        try:
            self._template = environment.from_string(source or CHATML)
        except TemplateError as error:
            raise EngineFailed(f"the model's chat template does not compile: {error}") from error
        self._names = {"bos_token": bos, "eos_token": eos}

    def render(self, messages: tuple[Message, ...]) -> tuple[Pieces, int]:
        """The prompt in pieces, and how many of them stand before the text of the first message that is no leading
        system message. Raises BadRequest if the template refuses the conversation.
        """
        marked = [{"role": m.role, "content": f"{OPEN}{_unmarked(m.content)}{CLOSE}"} for m in messages]
        leading = len(system_part(messages))
        if leading < len(marked):
            marked[leading]["content"] = FIRST + marked[leading]["content"]
        chunks, size = [], 0
        sys.settrace(_Bound())
        try:
            for chunk in self._template.generate(messages=marked, add_generation_prompt=True, **self._names):
                chunks.append(chunk)
                size += len(chunk)
                if size > PROMPT_MAX:
                    raise BadRequest(f"messages: the chat template renders more than {PROMPT_MAX} characters")
        except TEMPLATE_FAULTS as error:
            raise BadRequest(f"messages: the model's chat template refuses them: {error}") from error
        finally:
            sys.settrace(None)
        return _pieces("".join(chunks))

    def prompt(self, messages: tuple[Message, ...], tokenizer: Tokenizer) -> Prompt:
        """Control tokens come from the template alone.

        Each piece is tokenised by itself, so that the system part's tokens do not depend on what comes after it.
        """
        tokens, system = array("i"), 0
        pieces, leading = self.render(messages)
        for number, (text, markup) in enumerate(pieces):
            tokens += tokenizer.tokenize(text, special=markup)
            if number < leading:
                system = len(tokens)
        return Prompt(tokens, system, not all(markup for _, markup in pieces[:leading]))


class _Bound:
    """A trace function (sys.settrace) that ends what executes more than LINES_MAX lines."""

    def __init__(self) -> None:
        self._left = LINES_MAX

    def __call__(self, _frame: FrameType, _event: str, _argument: object) -> Self:
        self._left -= 1
        if self._left < 0:
            raise SecurityError("it does not come to an end")
        return self


def _pieces(rendered: str) -> tuple[Pieces, int]:
    """Cut at the marks; a template may have cut, doubled or dropped what they enclose."""
    pieces: Pieces = []
    markup, at, leading = True, 0, None
    for index, character in enumerate(rendered):
        if character in (OPEN, CLOSE, FIRST):
            if index > at:
                pieces.append((rendered[at:index], markup))
            at = index + 1
            if character == FIRST:
                leading = len(pieces) if leading is None else leading
            else:
                markup = character == CLOSE
    if at < len(rendered):
        pieces.append((rendered[at:], markup))
    return pieces, leading or 0


def _unmarked(text: str) -> str:
    return text.translate(_MARKS)


def _raise(message: str) -> None:
    raise TemplateError(message)
