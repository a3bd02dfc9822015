"""The text of an answer as it grows: whole UTF-8 characters only, and never a part of a stop string."""

import codecs
from collections.abc import Sequence


class AnswerText:
    """Feed it the bytes of tokens; it gives back what may be shown already."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stops
        self._held = ""  # could be the start of a stop string
        self.whole = ""  # all that was given out
        self.stopped = False

    def feed(self, data: bytes) -> str:
        return self._give(self._held + self._decoder.decode(data))

    def finish(self) -> str:
        """What was held back, since no more will come; nothing after a stop string."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        self.whole += text
        return text

    def _give(self, text: str) -> str:
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            text = text[: min(found)]
        else:
            keep = max((_overlap(text, stop) for stop in self._stops), default=0)
            self._held = text[len(text) - keep :]
            text = text[: len(text) - keep]
        self.whole += text
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
