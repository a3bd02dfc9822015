"""What the demo shows: titles, commands that one could type, answers word by word; in colour on a terminal."""

import json
import os
import re
import shlex
import shutil
import sys
from typing import Final

from llmasos_edge.cli.terminal import harmless

WIDTH_MAX: Final = 100
INDENT: Final = "    "
BOLD, DIM, GREEN, RED = "1", "2", "32", "31"  # SGR parameters (ECMA-48)


class Screen:
    """Writes to stdout at once; failures go to stderr."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.width: Final = min(WIDTH_MAX, shutil.get_terminal_size().columns)

    def write(self, text: str, style: str = "") -> None:
        """Text as it is, without an end of line."""
        if text:
            print(f"\033[{style}m{text}\033[0m" if style and self._colour else text, end="", flush=True)

    def line(self, text: str = "", style: str = "") -> None:
        self.write(harmless(text), style)
        self.write("\n")

    def title(self, text: str) -> None:
        self.line()
        self.line(f"── {text} ".ljust(self.width, "─"), BOLD)

    def command(self, *arguments: str) -> None:
        """A command line that the reader could type as it stands."""
        self.line(f"$ {shlex.join(arguments)}")

    def publication(self, port: int, topic: str, payload: object) -> None:
        """The command line that publishes this."""
        self.line(f"$ mosquitto_pub -p {port} -q 1 -t {shlex.quote(topic)} \\")
        self.line(f"{INDENT}-m {shlex.quote(as_json(payload))}")

    def message(self, topic: str, text: str, after_s: float) -> None:
        """A message that came, how long after the question."""
        self.write(f"< {topic}  ", DIM)
        self.line(f"{text}  ({seconds(after_s)})", DIM)

    def note(self, text: str) -> None:
        self.line(f"{INDENT}{text}", DIM)


class Paragraph:
    """An answer that is shown while it grows: indented, and broken between words."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._held = ""  # a word whose end is not known yet
        self._column = 0
        self.text = ""

    def add(self, text: str) -> None:
        self.text += text
        *words, self._held = re.split(r"(?<=\s)(?=\S)", self._held + text)
        for word in words:
            self._put(word)

    def end(self) -> None:
        self._put(self._held.rstrip())
        self._held = ""
        if self._column:
            self._break()

    def _put(self, word: str) -> None:
        """A word, with the white space after it."""
        letters = word.strip()
        if letters:
            if self._column and self._column + 1 + len(letters) > self._screen.width:
                self._break()
            self._screen.write((" " if self._column else INDENT) + harmless(letters), GREEN)
            self._column = (self._column or len(INDENT) - 1) + 1 + len(letters)
        if "\n" in word and self._column:
            self._break()

    def _break(self) -> None:
        self._screen.write("\n")
        self._column = 0


def as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def seconds(duration_s: float) -> str:
    return f"{duration_s * 1000:.0f} ms" if duration_s < 1 else f"{duration_s:.1f} s"
