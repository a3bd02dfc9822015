"""Tests of a real node under load: control in every state, callers that vanish, streams without number, bursts, deaths.

After each the node is as it was before: no task, sequence, thread, file or byte is left, and its books balance.
"""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple, Self

import paho.mqtt.client as paho
import pytest

from llmasos_edge.api.client import Client, Stream
from llmasos_edge.errors import BadRequest, LLMasOSError, UnknownTask
from tests.integration.conftest import MakeDevice
from tests.integration.real_node import MODEL, ROOT, Json, RealNode, eventually
from tests.resident import taken

SEQUENCES: Final = 16
STORY: Final = "Once upon a time there was a little robot who"
GROWTH: Final = 24 << 20  # bytes of anonymous memory that the daemon may keep: stacks of 400 threads, pools of malloc
BURST: Final = 10_000
TURN: Final[Json] = {"messages": [{"role": "user", "content": "Tell me a long story."}], "session": "s"}
STATES: Final = ("BLOCKED", "NEW", "READY", "prefill", "decode", "SUSPENDED")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    """A node with 16 sequences, which has served already: what it makes once is made."""
    node = RealNode(tmp_path_factory.mktemp("node"))
    wide = node.config.read_text().replace("sequences: 8, kv_pool: 2048", f"sequences: {SEQUENCES}, kv_pool: 8192")
    node.config.write_text(wide.replace("arena: 32MiB", "arena: 64MiB"))
    try:
        node.start()
        with Crowd(node) as crowd:
            for number in range(40):
                crowd.ask(f"{number} {STORY}", 8)
            assert crowd.statuses() == Counter(ok=40)
        yield node
    finally:
        node.close()


class Census(NamedTuple):
    """What of a node could leak."""

    held: tuple[int, int, int]  # tasks, those that the model has, bytes of the arena
    regions: tuple[str, ...]
    threads: int
    files: int
    anonymous: int

    @classmethod
    def of(cls, node: RealNode) -> "Census":
        mem, (model, *_) = node.call("mem"), node.call("models")
        held = Path(f"/proc/{node.pid}")
        return cls(
            (len(node.tasks()), model["running"] + model["ready"] + model["waiting"], mem["arena"]["used"]),
            tuple(sorted(region["name"] for region in mem["regions"])),
            len(list((held / "task").iterdir())),
            len(list((held / "fd").iterdir())),
            taken(node.pid)["daemon"].anonymous,
        )


@pytest.fixture(autouse=True)
def leaves_the_node_as_it_was(node: RealNode) -> Iterator[None]:
    """Threads and descriptors of calls that have just ended may take a moment to go."""
    before = Census.of(node)
    yield

    def settled() -> bool:
        for row in node.call("sessions"):  # which are kept, once the disk has them
            node.call("session.rm", session=row["session"], client=row["client"])
        after = Census.of(node)
        same = after.held == before.held and after.regions == before.regions
        return same and after.threads <= before.threads and after.files <= before.files

    eventually(lambda: not node.tasks(), "nothing is left to do")
    eventually(settled, f"the node is as before: {before}", 20)
    assert node.call("check") == {"sound": True, "why": None}
    assert Census.of(node).anonymous - before.anonymous <= GROWTH


class Crowd:
    """Callers with a connection and a thread each."""

    def __init__(self, node: RealNode) -> None:
        self._node, self._threads = node, list[threading.Thread]()
        self.replies: list[Json] = []
        self.errors: list[LLMasOSError] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()

    def ask(self, prompt: str, max_tokens: int, **more: object) -> None:
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0} | more
        self._threads.append(threading.Thread(target=self._call, args=(body,)))
        self._threads[-1].start()

    def _call(self, body: Json) -> None:
        try:
            self.replies.append(self._node.call("submit", op="generate", body=body))
        except LLMasOSError as error:
            self.errors.append(error)

    def statuses(self) -> Counter[str]:
        """How the calls ended."""
        for thread in self._threads:
            thread.join()
        return Counter([reply["status"] for reply in self.replies] + [error.code for error in self.errors])


class Caller:
    """One connection with a task under way."""

    def __init__(self, node: RealNode, body: Json, op: str = "generate") -> None:
        self.client: Client = node.client()
        self.stream: Stream = self.client.stream("submit", op=op, body={"max_tokens": 24, "temperature": 0} | body)
        self.task: str = next(self.stream)["accepted"]["task"]

    def end(self) -> Json | str:
        """The reply, or the code of the error."""
        with self.client:
            try:
                reply: Json = self.stream.finish()
            except LLMasOSError as error:
                return error.code
            return reply


def long_prompt(number: int) -> str:
    """Seconds of prefill, none of it known already."""
    return f"{number} {os.urandom(4).hex()} " + "The old river bends to the sea. " * 55


def until(node: RealNode, task: str, right: Callable[[Json], bool]) -> None:
    eventually(lambda: right(node.call("show", task=task)), f"{task} is where the test wants it", 30)


def bring_about(node: RealNode, stack: ExitStack, state: str) -> None:
    """What a task meets that comes into this state; undone when the stack is closed."""
    if state == "NEW":
        worker = node.children()["worker"]
        os.kill(worker, signal.SIGSTOP)
        stack.callback(os.kill, worker, signal.SIGCONT)
    elif state == "READY":
        for _ in range(SEQUENCES):
            urgent = Caller(node, {"prompt": STORY, "max_tokens": 400, "class": "critical"})
            stack.callback(urgent.client.close)
            until(node, urgent.task, lambda row: row["state"] == "RUNNING")
    elif state == "BLOCKED":
        first = Caller(node, TURN | {"max_tokens": 400}, "chat")
        stack.callback(first.client.close)


def arrived(node: RealNode, state: str) -> Caller:
    """A task in this state."""
    prompt = long_prompt(0) if state == "prefill" else STORY
    caller = Caller(node, TURN, "chat") if state == "BLOCKED" else Caller(node, {"prompt": prompt})
    if state == "decode":
        until(node, caller.task, lambda row: row["generated_tokens"] > 0)
    elif state == "SUSPENDED":
        node.call("suspend", task=caller.task)
    else:
        wanted = "RUNNING" if state == "prefill" else state
        until(node, caller.task, lambda row: row["state"] == wanted)
    return caller


@pytest.mark.parametrize("state", STATES)
def test_control_in_every_state(node: RealNode, state: str) -> None:
    """Reniced, suspended, resumed, it answers in its new class; reniced and killed, its caller hears of that."""
    with ExitStack() as others:
        bring_about(node, others, state)
        caller = arrived(node, state)
        before = "SUSPENDED" if state == "SUSPENDED" else None
        reniced = node.call("renice", task=caller.task, **{"class": "batch"})["state"]
        assert before in (None, reniced)
        assert node.call("suspend", task=caller.task)["state"] == "SUSPENDED"
        assert node.call("suspend", task=caller.task)["state"] == "SUSPENDED"
        shown = node.call("show", task=caller.task)
        assert (shown["position"], shown["eta_ms"], shown["class"]) == (None, None, "batch")
        assert node.call("renice", task=caller.task, **{"class": "interactive"})["state"] == "SUSPENDED"
        assert node.call("resume", task=caller.task)["state"] != "SUSPENDED"
        assert node.call("resume", task=caller.task)["state"] != "SUSPENDED"
        doomed = arrived(node, state)
        assert node.call("kill", task=doomed.task)["state"] == "TERMINATED"
        assert doomed.end() == "cancelled"
    reply = caller.end()
    assert isinstance(reply, dict)
    assert (reply["status"], reply["class"]) == ("ok", "interactive")
    assert reply["usage"]["completion_tokens"] == 24


def test_control_of_what_has_ended_or_never_was(node: RealNode) -> None:
    """A clear error, but for what is so already: it is dead, and its answer is there."""
    caller = Caller(node, {"prompt": STORY, "max_tokens": 2})
    assert caller.end() != "cancelled"
    for call, more in (("renice", {"class": "batch"}), ("suspend", {}), ("resume", {})):
        with pytest.raises(BadRequest, match="has ended already"):
            node.call(call, task=caller.task, **more)
        with pytest.raises(UnknownTask, match="there is no task 9-9"):
            node.call(call, task="9-9", **more)
    assert node.call("kill", task=caller.task)["state"] == "TERMINATED"
    assert node.call("wait", task=caller.task)["status"] == "ok"
    for call in ("kill", "wait", "show"):
        with pytest.raises(UnknownTask, match="there is no task 9-9"):
            node.call(call, task="9-9")


@pytest.mark.parametrize("state", STATES)
def test_who_hangs_up_is_cancelled_at_once(node: RealNode, state: str) -> None:
    """Also inside a long prompt: nobody computes for nobody."""
    with ExitStack() as others:
        bring_about(node, others, state)
        caller = arrived(node, state)
        at = time.monotonic()
        caller.client.close()
        eventually(lambda: not node.tasks(id=caller.task), "it is cancelled", 5)
        assert time.monotonic() - at < 1
    assert node.call("show", task=caller.task)["error"]["code"] == "cancelled"


def test_who_hangs_up_while_the_model_is_loaded_is_cancelled(node: RealNode) -> None:
    """And the model is there for the next one."""
    node.call("model.unpin", model=MODEL)
    node.call("model.drop", model=MODEL)
    caller = Caller(node, {"prompt": STORY})
    assert node.call("show", task=caller.task)["state"] == "BLOCKED"
    caller.client.close()
    eventually(lambda: not node.tasks(), "it is cancelled", 5)
    node.call("model.pin", model=MODEL)
    node.call("model.load", model=MODEL)
    assert node.ask(STORY)["status"] == "ok"


def test_a_device_that_vanishes_is_answered_when_it_is_back(node: RealNode, make_device: MakeDevice) -> None:
    """What it asked at QoS 1 is computed without it: queued, in its prompt, decoding."""
    phone = make_device(node.port, "vanishing")
    asked = {f"v{number}": long_prompt(number) if number % 3 == 0 else STORY for number in range(20)}
    for name, prompt in asked.items():
        phone.generate(name, prompt, max_tokens=4)
    phone.next(f"{ROOT}/res/vanishing/v0/accepted")
    connection = phone.client.socket()
    assert connection is not None
    phone.client.loop_stop()
    connection.close()  # without a word
    eventually(lambda: not node.tasks(), "all is computed")
    back = make_device(node.port, "vanishing-too")
    back.listen(f"{ROOT}/res/vanishing/#")
    for name, prompt in asked.items():  # it asks again, as who missed its replies does
        back.publish(f"{ROOT}/req/vanishing/generate", _body(name, prompt))
    assert [back.next(f"{ROOT}/res/vanishing/{name}")["status"] for name in asked] == ["ok"] * 20


def _body(name: str, prompt: str) -> bytes:
    return f'{{"id": "{name}", "prompt": "{prompt}", "temperature": 0, "max_tokens": 4}}'.encode()


@pytest.fixture
def policy(node: RealNode, request: pytest.FixtureRequest) -> Iterator[str]:
    """The node goes by this policy meanwhile."""
    plain = node.config.read_text()
    node.config.write_text(plain.replace("spec:\n", f"spec:\n  scheduler: {{policy: {request.param}}}\n"))
    node.call("reload")
    yield request.param
    node.config.write_text(plain)
    node.call("reload")


@pytest.mark.parametrize("policy", ["priority", "round-robin"], indirect=True)
def test_256_streams_on_16_sequences(
    node: RealNode, policy: str, record_property: Callable[[str, object], None]
) -> None:
    """Equals: each advances and is answered, whether or not they take turns."""
    at = time.monotonic()
    with Crowd(node) as crowd:
        for number in range(256):
            crowd.ask(f"Number {number}. {STORY}", 10)
        assert crowd.statuses() == Counter(ok=256)
    preemptions = sum(reply["timing"]["preemptions"] for reply in crowd.replies)
    assert all(reply["usage"]["completion_tokens"] == 10 for reply in crowd.replies)
    assert (preemptions > 100) == (policy == "round-robin")
    record_property("seconds", round(time.monotonic() - at, 1))
    record_property("preemptions", preemptions)


@pytest.mark.parametrize("qos", [0, 1])
def test_a_burst_over_mqtt(node: RealNode, make_device: MakeDevice, qos: int) -> None:
    """Each request is answered once: done, or `queue_full` with a time to come again; the daemon stays small."""
    phone, outcomes = make_device(node.port, f"burst-{qos}"), Counter[tuple[str, str]]()

    def count(_client: object, _data: object, message: paho.MQTTMessage) -> None:
        name = message.topic.rpartition("/")[2]
        if name != "accepted":
            outcomes[name, _outcome(json.loads(message.payload))] += 1

    phone.client.on_message = count
    for number in range(BURST):
        body = f'{{"id": "{number}", "prompt": "Tale {number}", "max_tokens": 2}}'.encode()
        phone.client.publish(f"{ROOT}/req/{phone.name}/generate", body, qos)
    eventually(lambda: outcomes.total() >= BURST, "all are answered", 300)
    assert outcomes.total() == len({name for name, _ in outcomes}) == BURST
    assert {outcome for _, outcome in outcomes} == {"ok", "queue_full"}
    assert sum(outcome == "ok" for _, outcome in outcomes) >= 256


def _outcome(reply: Json) -> str:
    if reply["status"] == "ok":
        return "ok"
    assert reply["error"]["retry_after_ms"] >= 100
    return str(reply["error"]["code"])


def test_a_burst_over_the_control_socket(node: RealNode) -> None:
    """From 400 connections at once, detached: each call is answered, and what was taken is computed."""
    outcomes, numbers = Counter[str](), iter(range(BURST))

    def call() -> None:
        with node.client() as client:
            for number in numbers:
                body = {"id": f"burst-{number}", "prompt": f"Tale {number}", "max_tokens": 2}
                try:
                    client.call("submit", op="generate", body=body, detach=True)
                    outcomes["taken"] += 1
                except LLMasOSError as error:
                    assert error.retry_after_ms is not None
                    outcomes[error.code] += 1

    threads = [threading.Thread(target=call) for _ in range(400)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) == {"taken", "queue_full"}
    assert outcomes.total() == BURST


@pytest.mark.parametrize("policy", ["round-robin"], indirect=True)
def test_a_worker_that_dies_with_16_running_and_100_parked(node: RealNode, policy: str) -> None:
    """All are answered, none of them with less than it asked for."""
    with Crowd(node) as crowd:
        for number in range(SEQUENCES + 100):
            crowd.ask(f"Number {number}. {STORY}", 30)
        eventually(lambda: _begun(node) >= SEQUENCES + 100, "all have begun, and none has ended")
        assert len(node.tasks(state="RUNNING")) == SEQUENCES
        os.kill(node.children()["worker"], signal.SIGKILL)
        assert crowd.statuses() == Counter(ok=SEQUENCES + 100)
    assert all(reply["usage"]["completion_tokens"] == 30 for reply in crowd.replies)


def _begun(node: RealNode) -> int:
    return sum(1 for row in node.tasks() if row["generated_tokens"])
