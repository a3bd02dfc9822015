"""Sessions on a real node: what is computed of them outlives tasks, models, daemons and power cuts, and stays right."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.real_node import MODEL, RealNode, eventually

TURNS = ("Tell me about the sea.", "And about mountains?", "Which of them is older?")
SWAP = "memory: {{budget: 1GiB, arena: 32MiB, swap: {{path: {path}, size: {size}}}}}"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RealNode]:
    """With a swap file."""
    node = RealNode(tmp_path)
    text = node.config.read_text()
    swap = SWAP.format(path=tmp_path / "swap", size="64MiB")
    node.config.write_text(text.replace("memory: {budget: 1GiB, arena: 32MiB}", swap))
    node.start()
    yield node
    node.close()


def chat(node: RealNode, *messages: dict[str, str], session: str | None = None) -> dict[str, Any]:
    """The reply to a greedy turn."""
    body = {"messages": list(messages), "temperature": 0, "max_tokens": 12}
    reply: dict[str, Any] = node.call("submit", op="chat", body=body | ({"session": session} if session else {}))
    assert reply["status"] == "ok"
    return reply


def turn(node: RealNode, number: int, session: str = "s") -> dict[str, Any]:
    return chat(node, {"role": "user", "content": TURNS[number]}, session=session)


def undisturbed(node: RealNode, number: int) -> str:
    """What the model says to the whole conversation up to that turn, without a session."""
    messages: list[dict[str, str]] = []
    for said in TURNS[: number + 1]:
        messages.append({"role": "user", "content": said})
        text = str(chat(node, *messages)["output"]["text"])
        messages.append({"role": "assistant", "content": text})
    return text


def state(node: RealNode) -> str:
    return str(node.call("sessions")[0]["state"])


def writes(node: RealNode) -> int:
    return int(node.call("mem")["swap"]["writes"])


def test_a_session_goes_on_after_anything(node: RealNode) -> None:
    """A model that was dropped, a worker and a daemon that were killed: the next turn goes on from what was saved."""
    cached = []
    turn(node, 0)
    node.call("model.drop", model=MODEL)
    second = turn(node, 1)
    cached.append(second["usage"]["cached_tokens"])
    eventually(lambda: writes(node) == 2, "both turns are written")
    node.kill()
    node.start()
    assert state(node) == "swapped"
    third = turn(node, 2)
    cached.append(third["usage"]["cached_tokens"])
    assert state(node) == "parked"
    assert cached[0] > 15
    assert cached[1] > cached[0]
    expected = [undisturbed(node, number) for number in (1, 2)]
    assert [second["output"]["text"], third["output"]["text"]] == expected


def test_a_corrupt_segment_costs_a_computation_and_an_event(node: RealNode) -> None:
    """The answer is the undisturbed one."""
    turn(node, 0)
    eventually(lambda: writes(node) == 1, "it is written")
    node.kill()
    data = next((node.folder / "swap").glob("segments"))
    with data.open("r+b") as file:
        file.seek(100_000)
        file.write(b"\xff" * 100)
    node.start()
    second = turn(node, 1)
    assert second["output"]["text"] == undisturbed(node, 1)
    with node.client() as client:
        kinds = [event["trace"]["kind"] for event in client.stream("dmesg", follow=False)]
    assert "session.corrupt" in kinds


def test_another_kv_type_is_another_state(node: RealNode) -> None:
    """What was saved under q8_0 is of no use to f16: it is computed again, and the answer makes sense."""
    turn(node, 0)
    eventually(lambda: writes(node) == 1, "it is written")
    node.terminate()
    node.config.write_text(node.config.read_text().replace("kv_pool: 2048", "kv_pool: 2048, kv: f16"))
    node.start()
    second = turn(node, 1)
    assert second["usage"]["cached_tokens"] == 0
    assert second["output"]["text"] == undisturbed(node, 1)
