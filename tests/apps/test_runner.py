"""The tests of the runner: from a message to a publication, and every way in which the answer may fail to come."""

import json
from pathlib import Path

import pytest

from llmasos_edge.apps.runner import AppRunner, OnDone, Run
from llmasos_edge.apps.spec import load_app
from llmasos_edge.errors import BadRequest, LLMasOSError, NoMemory, UnknownApp

ALARM = """apiVersion: llmasos/v1
kind: App
metadata: {name: alarm, description: "Smoke."}
spec:
  trigger: {mqtt: "z/+/smoke", when: "payload.smoke", every_s: 30}
  class: critical
  deadline_ms: 10000
  max_tokens: 80
  temperature: 0
  system: "You are an alarm in the {{ topic[1] }}."
  prompt: "Smoke, {{ payload.temperature }} C."
  format: {type: object, properties: {instruction: {type: string}}, required: [instruction]}
  publish: "home/{{ topic[1] }}"
  fallback: {instruction: "Leave."}
"""
PLAIN = """apiVersion: llmasos/v1
kind: App
metadata: {name: plain, description: "Plain."}
spec: {prompt: "Say {{ input.text }}"}
"""
FALLBACK = b'{"instruction": "Leave."}'
MESSAGE = b'{"smoke": true, "temperature": 61}'


class World:
    """The node around a runner: what it submitted, published, subscribed to and reported, and its clock."""

    def __init__(self, folder: Path, *sources: str) -> None:
        self.now = 0
        self.refuse: LLMasOSError | None = None
        self.submitted: list[tuple[Run, dict[str, object], OnDone]] = []
        self.published: list[tuple[str, bytes]] = []
        self.filters: list[str] = []
        self.events: list[tuple[str, dict[str, object]]] = []
        specs = {}
        for source in sources:
            name = source.split("name: ")[1].split(",")[0]
            (folder / f"{name}.yaml").write_text(source)
            specs[name] = load_app(folder / f"{name}.yaml")
        self.runner = AppRunner(
            specs,
            submit=self._submit,
            publish=lambda topic, payload: self.published.append((topic, payload)),
            subscribe=self.filters.append,
            clock_ms=lambda: self.now,
            event=lambda kind, details: self.events.append((kind, details)),
        )
        self.runner.start()

    def _submit(self, run: Run, body: dict[str, object], on_done: OnDone) -> None:
        if self.refuse:
            raise self.refuse
        self.submitted.append((run, body, on_done))

    def message(self, payload: bytes = MESSAGE, topic: str = "z/kitchen/smoke", *, retained: bool = False) -> None:
        """Deliver a sensor's message."""
        self.runner.on_message(topic, payload, retained)

    def answer(self, text: str) -> None:
        """Let the newest run end with an answer."""
        self.submitted[-1][2]({"status": "ok", "output": {"text": text, "finish_reason": "stop"}})

    def fail(self, code: str) -> None:
        """Let the newest run end with an error."""
        self.submitted[-1][2]({"status": "error", "error": {"code": code, "message": "no"}})

    def pass_time(self, ms: int) -> None:
        """Let time pass, and the daemon's timer go."""
        self.now += ms
        self.runner.tick(self.now)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A node with an alarm and a plain app."""
    return World(tmp_path, ALARM, PLAIN)


def test_a_message_becomes_a_request_and_its_answer_a_publication(world: World) -> None:
    """The whole way, with the app's own values in the request."""
    assert world.filters == ["z/+/smoke"]
    world.message()
    run, body, _ = world.submitted[0]
    assert run == Run("alarm", "z/kitchen/smoke", "home/kitchen", durable=False)
    assert body == {
        "messages": [
            {"role": "system", "content": "You are an alarm in the kitchen."},
            {"role": "user", "content": "Smoke, 61 C."},
        ],
        "class": "critical",
        "deadline_ms": 10_000,
        "max_tokens": 80,
        "temperature": 0.0,
        "format": {"type": "object", "properties": {"instruction": {"type": "string"}}, "required": ["instruction"]},
    }
    world.answer('{"instruction": "Get out."}')
    assert world.published == [("home/kitchen", b'{"instruction": "Get out."}')]
    assert world.events == []


@pytest.mark.parametrize("code", ["deadline_exceeded", "no_memory", "engine_failed", "cancelled", "unheard_of"])
def test_an_error_publishes_the_fallback_and_says_so(world: World, code: str) -> None:
    """Whatever the reason, people are told."""
    world.message()
    world.fail(code)
    assert world.published == [("home/kitchen", FALLBACK)]
    assert world.events[0][0] == "app.fallback"


@pytest.mark.parametrize("text", ["", "Leave.", "{}", '{"instruction": "Lea'])
def test_an_answer_without_the_format_is_no_answer(world: World, text: str) -> None:
    """What the schema refuses is never published."""
    world.message()
    world.answer(text)
    assert world.published == [("home/kitchen", FALLBACK)]


def test_a_reply_that_is_no_reply_publishes_the_fallback(world: World) -> None:
    """Even a broken reply ends the run."""
    world.message()
    world.submitted[0][2]({"status": "ok"})
    assert world.published == [("home/kitchen", FALLBACK)]


def test_a_refused_submission_publishes_the_fallback_at_once(world: World) -> None:
    """When the node can't take the request, nobody waits for the deadline."""
    world.refuse = NoMemory("no room")
    world.message()
    assert world.published == [("home/kitchen", FALLBACK)]
    assert world.events[0][1]["error"] == {"code": "no_memory", "message": "no room"}


def test_no_answer_by_the_deadline(world: World) -> None:
    """The fallback goes out at the deadline, once; an answer that comes later is not published."""
    world.message()
    assert world.runner.next_tick() == 10_000
    world.pass_time(9_999)
    assert world.published == []
    world.pass_time(1)
    assert world.published == [("home/kitchen", FALLBACK)]
    world.answer('{"instruction": "Too late."}')
    world.pass_time(60_000)
    assert world.published == [("home/kitchen", FALLBACK)]


def test_a_prompt_that_lacks_a_field_publishes_the_fallback_and_names_it(world: World) -> None:
    """A sensor without a temperature still raises the alarm."""
    world.message(b'{"smoke": true}')
    assert world.published == [("home/kitchen", FALLBACK)]
    assert world.events[0][1]["error"] == {"code": "bad_request", "message": "payload.temperature is missing"}


def test_without_a_fallback_there_is_an_event(tmp_path: Path) -> None:
    """A failure that publishes nothing is still told."""
    world = World(tmp_path, ALARM.replace('  fallback: {instruction: "Leave."}\n', ""))
    world.message()
    world.fail("engine_failed")
    assert world.published == []
    assert [kind for kind, _ in world.events] == ["app.failed"]


@pytest.mark.parametrize("room", ["#", "+", "\\u0000", ""])
def test_a_message_can_not_choose_a_forbidden_topic(tmp_path: Path, room: str) -> None:
    """A publish topic made of a payload is checked when it is made; the topic goes on working."""
    world = World(tmp_path, ALARM.replace("home/{{ topic[1] }}", "{{ payload.room }}").replace(", every_s: 30", ""))
    for _ in range(2):
        world.message(f'{{"smoke": true, "temperature": 1, "room": "{room}"}}'.encode())
        assert world.submitted == []
    assert [kind for kind, _ in world.events] == ["app.failed"] * 2
    world.message(b'{"smoke": true, "temperature": 1, "room": "llmasos/v1/home/kitchen/status"}')
    world.message(b'{"smoke": true, "temperature": 1, "room": "z/garage/smoke"}')
    assert world.submitted == []
    world.message(b'{"smoke": true, "temperature": 1, "room": "fine"}')
    assert world.submitted[0][0].target == "fine"


def test_the_newest_waits_for_the_run_and_the_rate_limit(world: World) -> None:
    """Of the messages during a run, the newest runs when the rate limit lets it."""
    world.message()
    world.message(b'{"smoke": true, "temperature": 62}')
    world.message(b'{"smoke": true, "temperature": 63}')
    world.answer('{"instruction": "Get out."}')
    assert world.runner.next_tick() == 30_000
    world.pass_time(29_999)
    assert len(world.submitted) == 1
    world.pass_time(1)
    assert "63 C" in json.dumps(world.submitted[1][1])
    assert world.runner.show("alarm")["stats"] == {"messages": 3, "runs": 2, "waited": 1, "replaced": 1, "published": 1}


def test_without_a_rate_limit_the_next_starts_as_the_run_ends(tmp_path: Path) -> None:
    """Two readings in a row are both answered."""
    world = World(tmp_path, ALARM.replace(", every_s: 30", ""))
    world.message()
    world.message(b'{"smoke": true, "temperature": 62}')
    world.answer('{"instruction": "One."}')
    world.answer('{"instruction": "Two."}')
    assert [payload for _, payload in world.published] == [b'{"instruction": "One."}', b'{"instruction": "Two."}']


def test_what_triggers_nothing(world: World) -> None:
    """Other topics, false conditions and retained messages start no run; bad payloads are told."""
    world.message(topic="z/kitchen/light")
    world.message(b'{"smoke": false}')
    world.message(retained=True)
    assert world.events == []
    world.message(b"\xff")
    assert world.submitted == []
    assert [kind for kind, _ in world.events] == ["app.dropped"]


def test_retained_messages_for_an_app_that_asks(tmp_path: Path) -> None:
    """An app may take the retained state of a sensor."""
    world = World(tmp_path, ALARM.replace("every_s: 30", "retained: true"))
    world.message(retained=True)
    assert len(world.submitted) == 1


def test_every_message_is_durable(tmp_path: Path) -> None:
    """With `every` each message is submitted at once, and marked to survive a crash."""
    world = World(tmp_path, ALARM.replace("every_s: 30", "queue: every"))
    world.message()
    world.message()
    assert [run.durable for run, _, _ in world.submitted] == [True, True]


def test_a_run_of_an_earlier_life_is_adopted(world: World) -> None:
    """After a restart the answer still goes where it should."""
    on_done = world.runner.adopt(Run("alarm", "z/kitchen/smoke", "home/kitchen", durable=True))
    on_done({"status": "ok", "output": {"text": '{"instruction": "Get out."}'}})
    assert world.published == [("home/kitchen", b'{"instruction": "Get out."}')]


def test_expanding_an_app_for_a_run(world: World) -> None:
    """`run` gets the app's request for its input; what the app leaves open is left out."""
    assert world.runner.expand("plain", {"text": "hello"}) == {
        "messages": [{"role": "user", "content": "Say hello"}],
        "class": "normal",
    }


@pytest.mark.parametrize(
    ("app", "given", "says"),
    [
        ("plain", {"txt": 1}, 'app "plain": input.text is missing'),
        ("plain", "text", "input.text is missing"),
        ("plain", " ", "input: it is empty"),
        ("alarm", "smoke", r"payload is missing \(its messages come from z/\+/smoke\)"),
    ],
)
def test_inputs_that_an_app_can_not_take(world: World, app: str, given: str | dict[str, object], says: str) -> None:
    """A wrong input is refused, and the message says what is missing."""
    with pytest.raises(BadRequest, match=says):
        world.runner.expand(app, given)


@pytest.mark.parametrize(
    ("system", "says"),
    [
        ("Be brief.", "Be brief."),
        ("{% for n in [1, 2] %}{{ n }}{% endfor %}", "12"),
        ("Help {{ input.name }}.", None),
        ("Be {% if input is defined %}brief{% endif %}.", None),
        (None, None),
    ],
)
def test_a_system_prompt_that_no_input_changes(tmp_path: Path, system: str | None, says: str | None) -> None:
    """It is the same for whoever runs the app; an app that is not there, or no longer, has none."""
    world = World(
        tmp_path, PLAIN if system is None else PLAIN.replace("{prompt", f"{{system: {json.dumps(system)}, prompt")
    )
    assert world.runner.system("plain") == says
    assert world.runner.system("gone") is None


def test_an_unknown_app_has_a_suggestion(world: World) -> None:
    """A misspelt app is met with the one that was meant."""
    with pytest.raises(UnknownApp, match='did you mean "alarm"'):
        world.runner.expand("alram", "x")


def test_the_list_of_apps(world: World) -> None:
    """The list tells what an app is for, and what starts it."""
    assert world.runner.listing() == [
        {"name": "alarm", "description": "Smoke.", "class": "critical", "model": None, "trigger": "z/+/smoke"},
        {"name": "plain", "description": "Plain.", "class": "normal", "model": None},
    ]
    assert json.dumps(world.runner.show("alarm"))
