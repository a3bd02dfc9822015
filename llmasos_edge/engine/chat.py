"""Chat templates: the model's own Jinja, rendered in a sandbox and tokenised so that nobody forges control tokens."""

from __future__ import annotations  # array[int] exists for the type checker only

import sys
from array import array
from datetime import UTC, datetime
from types import FrameType
from typing import Final, Protocol, Self

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmasos_edge.engine.protocol import Message
from llmasos_edge.errors import BadRequest, EngineFailed

OPEN, CLOSE = "\ue0f0", "\ue0f1"  # private-use marks around what callers wrote
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

    def render(self, messages: tuple[Message, ...]) -> list[tuple[str, bool]]:
        """The prompt in pieces `(text, is markup)`. Raises BadRequest if the template refuses the conversation."""
        marked = [{"role": m.role, "content": f"{OPEN}{_unmarked(m.content)}{CLOSE}"} for m in messages]
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

    def tokens(self, messages: tuple[Message, ...], tokenizer: Tokenizer) -> array[int]:
        """Control tokens come from the template alone."""
        tokens = array("i")
        for text, markup in self.render(messages):
            tokens += tokenizer.tokenize(text, special=markup)
        return tokens


class _Bound:
    """A trace function (sys.settrace) that ends what executes more than LINES_MAX lines."""

    def __init__(self) -> None:
        self._left = LINES_MAX

    def __call__(self, _frame: FrameType, _event: str, _argument: object) -> Self:
        self._left -= 1
        if self._left < 0:
            raise SecurityError("it does not come to an end")
        return self


def _pieces(rendered: str) -> list[tuple[str, bool]]:
    """Cut at the marks; a template may have cut, doubled or dropped what they enclose."""
    pieces, markup, at = [], True, 0
    for index, character in enumerate(rendered):
        if character in (OPEN, CLOSE):
            if index > at:
                pieces.append((rendered[at:index], markup))
            markup, at = character == CLOSE, index + 1
    if at < len(rendered):
        pieces.append((rendered[at:], markup))
    return pieces


def _unmarked(text: str) -> str:
    return text.replace(OPEN, "").replace(CLOSE, "")


def _raise(message: str) -> None:
    raise TemplateError(message)
