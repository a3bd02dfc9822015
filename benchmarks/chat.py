"""A turn of a conversation as its caller sees it: streamed and greedy, whoever answers it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.node import BenchNode

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Answered:
    """`first_ms`: from the request to the first text; `cached`: tokens of the prompt that were not computed."""

    first_ms: float
    text: str
    prompt: int
    cached: int
    generated: int


def chat(node: BenchNode, messages: Messages, tokens: int, session: str | None = None) -> Answered:
    """Over a connection of its own to the control socket. With a session, `messages` are the new turn alone."""
    body: dict[str, object] = {"messages": messages, "max_tokens": tokens, "temperature": 0}
    if session is not None:
        body["session"] = session
    with node.client() as client:
        sent = time.perf_counter()
        first = 0.0
        stream = client.stream("submit", op="chat", body=body)
        for event in stream:
            if "delta" in event and not first:
                first = time.perf_counter()
        usage = stream.result["usage"]
        return Answered(
            first_ms=((first or time.perf_counter()) - sent) * 1000,
            text=stream.result["output"]["text"],
            prompt=usage["prompt_tokens"],
            cached=usage["cached_tokens"],
            generated=usage["completion_tokens"],
        )
