"""The demo's scenes: a chat that streams, an app, two readings of a smoke sensor, and a look at the kernel."""

import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator

from llmasos_edge.demo.failure import DemoFailed
from llmasos_edge.demo.node import DemoNode
from llmasos_edge.demo.screen import INDENT, Paragraph, Screen, as_json, seconds
from llmasos_edge.demo.wire import Message, Wire

ROOT: Final = "llmasos/v1/home/kitchen"
CLIENT: Final = "demo"
SENSOR: Final = "zigbee2mqtt/kitchen/smoke"
ALERTS: Final = "home/alerts/kitchen"
FILTERS: Final = (f"{ROOT}/status", f"{ROOT}/res/{CLIENT}/#", ALERTS)
SMOKE_APP: Final = "smoke-alarm"

QUESTION: Final = "Why does a computer need an operating system? Answer in one sentence."
LONG_TEXT: Final = (
    "The garden pump did not start this morning. Anna found that the fuse had blown because water had come into the "
    "socket. She dried the socket, put in a new fuse, and the pump runs again."
)
ANSWER_S: Final = 120.0  # a small board with other work takes its time
SAY_AGAIN_S: Final = 5.0


class Scenes:
    def __init__(self, node: DemoNode, wire: Wire, screen: Screen) -> None:
        self._node, self._wire, self._screen = node, wire, screen

    def subscribe(self) -> None:
        """Until the retained status has come, the subscription does not hold."""
        self._screen.command(
            "mosquitto_sub", "-p", str(self._wire.port), "-v", *(word for f in FILTERS for word in ("-t", f))
        )
        sent_at = time.monotonic()
        message = self._next(sent_at, f"{ROOT}/status")
        self._screen.message(message.topic, as_json(message.payload), message.at - sent_at)

    def chat(self, question: str, *, limit: int) -> None:
        """`limit`: tokens that the answer may have."""
        messages = [{"role": "user", "content": question}]
        self._ask("chat", {"messages": messages, "max_tokens": limit, "temperature": 0})

    def summarize(self) -> None:
        self._ask("run", {"app": "summarize", "input": LONG_TEXT, "temperature": 0})

    def alarms(self) -> None:
        """Two readings, with and without a temperature: each must get a proper alert of its own."""
        spec = self._node.call("app.show", app=SMOKE_APP)["spec"]
        alerts = [self._alarm(spec, reading) for reading in ({"smoke": True, "temperature": 61}, {"smoke": True})]
        if alerts[0] == alerts[1]:
            raise DemoFailed(f"two different readings got the same alert: {as_json(alerts[0])}")

    def look(self) -> None:
        """What the kernel says, through the command line."""
        program = Path(sys.executable).with_name("llmasos")
        for arguments in (("ps", "-a"), ("mem",)):
            options = ("--socket", str(self._node.socket), *arguments)
            self._screen.command("llmasos", *options)
            try:
                subprocess.run([program, *options], check=True, timeout=ANSWER_S)
            except (OSError, subprocess.SubprocessError) as error:
                raise DemoFailed(f"llmasos {' '.join(arguments)}: {error}") from error
            self._screen.line()

    def _ask(self, op: str, body: dict[str, Any]) -> None:
        """A request, and everything that comes back for it, until its final reply."""
        request = {"id": f"{op}-{secrets.token_hex(3)}", **body, "stream": True}
        topic, place = f"{ROOT}/req/{CLIENT}/{op}", f"{ROOT}/res/{CLIENT}/{request['id']}"
        self._screen.publication(self._wire.port, topic, request)
        sent_at = self._wire.publish(topic, request)
        paragraph, attempt, first_at = Paragraph(self._screen), 1, 0.0
        while (message := self._next(sent_at, place, f"{place}/accepted", f"{place}/stream")).topic != place:
            if message.topic.endswith("/accepted"):
                self._screen.message(message.topic, as_json(message.payload), message.at - sent_at)
            elif "delta" in message.payload:
                if message.payload["attempt"] != attempt:  # the worker died: the answer is computed again
                    paragraph.end()
                    paragraph, attempt = Paragraph(self._screen), message.payload["attempt"]
                first_at = first_at or message.at
                paragraph.add(message.payload["delta"])
        reply = message.payload
        if reply["status"] != "ok":
            paragraph.end()
            raise DemoFailed(f"{op}: {reply['error']['code']}: {reply['error']['message']}")
        self._finish(paragraph, reply, message, sent_at, first_at or message.at)

    def _finish(
        self, paragraph: Paragraph, reply: dict[str, Any], message: Message, sent_at: float, first_at: float
    ) -> None:
        """The final reply has the whole text: what the stream (QoS 0) lost is shown from there."""
        text = reply["output"]["text"]
        if not text.strip():
            raise DemoFailed("the answer is empty")
        if text.startswith(paragraph.text):
            paragraph.add(text[len(paragraph.text) :])
        paragraph.end()
        usage = reply["usage"]
        cut = f", cut at {usage['completion_tokens']} tokens" if reply["output"]["finish_reason"] == "length" else ""
        self._screen.message(message.topic, f"the whole reply again: {reply['status']}{cut}", message.at - sent_at)
        self._screen.note(
            f"first words after {seconds(first_at - sent_at)}, the whole answer after {seconds(message.at - sent_at)};"
            f" {usage['prompt_tokens']} tokens read, {usage['completion_tokens']} written"
        )

    def _alarm(self, spec: dict[str, Any], reading: dict[str, Any]) -> dict[str, Any]:
        """What is published for one reading of the sensor."""
        self._screen.publication(self._wire.port, SENSOR, reading)
        sent_at = self._wire.publish(SENSOR, reading)
        message = self._next(sent_at, ALERTS)
        alert: dict[str, Any] = message.payload
        if not Draft202012Validator(spec["format"]).is_valid(alert) or not all(alert.values()):
            raise DemoFailed(f"the alert does not follow the app's schema: {as_json(alert)}")
        paragraph = Paragraph(self._screen)
        paragraph.add(as_json(alert))
        paragraph.end()
        self._screen.message(message.topic, "follows the app's schema", message.at - sent_at)
        if alert == spec["fallback"]:
            raise DemoFailed(
                "the model was not in time for the alarm, so the app's fallback was published (a busy machine?)"
            )
        return alert

    def _next(self, sent_at: float, *topics: str) -> Message:
        """The next message on one of `topics`; says that it waits while nothing comes."""
        said_at = time.monotonic()
        while time.monotonic() < sent_at + ANSWER_S:
            message = self._wire.receive(min(said_at + SAY_AGAIN_S, sent_at + ANSWER_S))
            if message is not None and message.topic in topics:
                return message
            if message is None:
                said_at = time.monotonic()
                self._screen.line(f"{INDENT}... waiting for {seconds(said_at - sent_at)}")
        raise DemoFailed(f"nothing came on {topics[0]} within {ANSWER_S:.0f} s")
