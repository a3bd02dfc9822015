"""An answer on its way to the terminal: deltas as they come, a new start after a crash, the rest at the end."""

import sys
from typing import Any

from llmasos_edge.api.client import Stream
from llmasos_edge.cli.terminal import harmless, note


class Answer:
    """Prints the text of one reply on stdout, and what happens to its task on stderr."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._attempt: int | None = None
        self._shown = ""
        self._ahead = 0

    def follow(self, stream: Stream) -> Any:
        """Print a `submit` or `wait` call to its end; returns the reply."""
        for event in stream:
            if "accepted" in event:
                self._accepted(event["accepted"])
            elif "waits" in event:
                self._waits(event["waits"])
            elif "delta" in event:
                self._delta(event["delta"], event.get("attempt"))
        self._finish(stream.result)
        return stream.result

    def _accepted(self, place: dict[str, Any]) -> None:
        ahead = place.get("position") or 0
        if ahead and sys.stderr.isatty():
            note(f"{place['task']} waits behind {ahead} other{'s' if ahead > 1 else ''}")
        self._ahead = ahead

    def _waits(self, place: dict[str, Any]) -> None:
        """Only what has changed: it comes every second."""
        if place["position"] != self._ahead and sys.stderr.isatty():
            self._ahead = place["position"]
            note(f"{self._ahead} before it, about {place['eta_ms'] / 1000:.0f} s until the answer")

    def _delta(self, text: str, attempt: int | None) -> None:
        if self._attempt is not None and attempt != self._attempt and self._shown:
            self._end_line()
            note("the task was interrupted and runs again: its answer starts anew")
            self._shown = ""
        self._attempt = attempt
        self._write(text)

    def _finish(self, reply: dict[str, Any]) -> None:
        output = reply.get("output") or {}
        text = output.get("text") or ""
        if text.startswith(self._shown):
            self._write(text[len(self._shown) :])
        elif text.strip() != self._shown.strip():
            self._end_line()
            self._write(text)
        self._end_line()
        if output.get("finish_reason") == "length":
            note("the answer was cut at its limit; --max-tokens sets it")

    def _write(self, text: str) -> None:
        self._shown += text
        sys.stdout.write(harmless(text) if self._terminal else text)
        sys.stdout.flush()

    def _end_line(self) -> None:
        if self._shown and not self._shown.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
