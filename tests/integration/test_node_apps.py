"""Tests of apps on a real node: sensor messages trigger them, answers are published, and fallbacks when none came."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.real_node import Device, RealNode, eventually

APPS = {
    "smoke": """
  trigger: {mqtt: "zigbee/+/smoke", when: "payload.smoke", queue: latest}
  class: critical
  deadline_ms: 60000
  max_tokens: 80
  temperature: 0
  prompt: "Smoke in the {{ topic[1] }}{% if payload.temperature is defined %}, {{ payload.temperature }} C{% endif %}:"
  format:
    type: object
    properties: {room: {enum: [kitchen, hall]}, instruction: {type: string, pattern: "^Leave the [a-z ]{4,20}$"}}
    required: [room, instruction]
    additionalProperties: false
  publish: "home/alerts/{{ topic[1] }}"
  fallback: {room: hall, instruction: "Leave the house"}""",
    "late": """
  trigger: {mqtt: "zigbee/+/door"}
  deadline_ms: 1
  format: json
  prompt: "The {{ topic[1] }} door is {{ payload }}."
  publish: "home/doors/{{ topic[1] }}"
  fallback: {said: "nothing in time"}""",
    "diary": """
  trigger: {mqtt: "zigbee/+/motion", queue: every}
  max_tokens: 4
  temperature: 0
  prompt: "{{ payload.text }}"
  publish: "home/diary/{{ topic[1] }}\"""",
    "echo": """
  max_tokens: 6
  temperature: 0
  prompt: "Repeat: {{ input }}\"""",
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    """A node with the apps above."""
    node = RealNode(tmp_path_factory.mktemp("apps"), apps=", ".join(APPS))
    for name, spec in APPS.items():
        head = f'apiVersion: llmasos/v1\nkind: App\nmetadata: {{name: {name}, description: "{name}"}}\nspec:'
        (node.folder / "apps" / f"{name}.yaml").write_text(head + spec + "\n")
    try:
        yield node.start()
    finally:
        node.close()


def stats(node: RealNode, app: str) -> dict[str, int]:
    shape: dict[str, int] = node.call("app.show", app=app)["stats"]
    return shape


def test_a_sensor_message_is_answered_by_the_schema(node: RealNode, phone: Device) -> None:
    """With and without a temperature; a message for which the condition does not hold does nothing."""
    phone.listen("home/alerts/+")
    phone.publish("zigbee/attic/smoke", b'{"smoke": false}')
    phone.publish("zigbee/attic/smoke", b"not even JSON")
    phone.publish("zigbee/kitchen/smoke", b'{"smoke": true}')
    phone.publish("zigbee/hall/smoke", b'{"smoke": true, "temperature": 61}')
    for room in ("kitchen", "hall"):
        alert = phone.next(f"home/alerts/{room}")
        assert set(alert) == {"room", "instruction"}
        assert alert["instruction"].startswith("Leave the ")
    assert not phone.all("home/alerts/attic")
    assert stats(node, "smoke")["published"] == 2


def test_the_newest_reading_wins_while_one_is_answered(node: RealNode, phone: Device) -> None:
    """Ten readings at once: the first and the last of them are answered, and no two at the same time."""
    phone.listen("home/alerts/+")
    before = stats(node, "smoke")
    for number in range(10):
        phone.publish("zigbee/kitchen/smoke", b'{"smoke": true, "temperature": %d}' % (40 + number))
    phone.nth("home/alerts/kitchen", 1)
    eventually(lambda: not node.tasks(app="smoke"), "all is answered")
    after = stats(node, "smoke")
    assert 2 <= after["runs"] - before["runs"] <= 3
    assert after["replaced"] >= 7


def test_the_fallback_comes_when_no_answer_came_in_time(node: RealNode, phone: Device) -> None:
    """At the deadline, once, and the task is over."""
    phone.listen("home/doors/+")
    phone.publish("zigbee/front/door", b"open")
    assert phone.next("home/doors/front") == {"said": "nothing in time"}
    eventually(lambda: not node.tasks(app="late"), "the task has ended")
    assert len(phone.all("home/doors/front")) == 1
    assert stats(node, "late")["fallbacks"] == 1


def test_an_app_is_run_by_name_with_its_own_values(phone: Device) -> None:
    """The app's settings hold, the caller's override them; what is no input is refused."""
    phone.send("run", {"id": "e1", "app": "echo", "input": "hello"})
    phone.send("run", {"id": "e2", "app": "echo", "input": "hello", "max_tokens": 2})
    assert phone.reply("e1")["usage"]["completion_tokens"] <= 6
    assert phone.reply("e2")["usage"]["completion_tokens"] == 2
    assert phone.ask("run", {"id": "e3", "app": "echo", "input": ""}, "e3")["error"]["code"] == "bad_request"
    assert phone.ask("run", {"id": "e4", "app": "smoke", "input": "x"}, "e4")["error"]["code"] == "bad_request"


def test_a_durable_run_survives_kill_9_with_all_its_messages(
    tmp_path: Path, outer_node: RealNode, phone_at_outer: Device
) -> None:
    """`queue: every`: what was acknowledged before the crash is answered after it."""
    node, phone = outer_node, phone_at_outer
    node.terminate()
    text = node.config.read_text()
    node.config.write_text(text.replace("apps: []", "apps: [diary]"))
    head = 'apiVersion: llmasos/v1\nkind: App\nmetadata: {name: diary, description: "diary"}\nspec:'
    (node.folder / "apps/diary.yaml").write_text(head + APPS["diary"] + "\n")
    node.start()
    phone.listen("home/diary/+")
    for number in range(4):
        phone.publish(f"zigbee/room{number}/motion", b'{"text": "Somebody went by. Then"}')
    node.kill()
    node.start()
    eventually(lambda: all(phone.messages(f"home/diary/room{n}") for n in range(4)), "every message is answered")
