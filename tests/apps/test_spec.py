"""The tests of app files: the contract's own example, the apps that ship, and every way to be wrong."""

from pathlib import Path

import pytest

from llmasos_edge.apps.spec import AppSpec, check_app, load_app, load_apps
from llmasos_edge.errors import ConfigError
from llmasos_edge.kernel.units import Priority
from llmasos_edge.resources import resource

SHIPPED = resource("configs") / "apps"
HEAD = 'apiVersion: llmasos/v1\nkind: App\nmetadata: {name: a, description: "An app."}\nspec:\n'
PROMPT = '  prompt: "{{ input }}"\n'
TRIGGER = "  trigger: {mqtt: devices/+/smoke}\n  publish: home/alerts\n  prompt: x\n"
CONTRACT = r"""apiVersion: llmasos/v1
kind: App
metadata: {name: smoke-alarm, description: "Turns a smoke reading into one clear instruction."}
spec:
  trigger: {mqtt: "zigbee2mqtt/+/smoke", when: "payload.smoke", queue: latest, every_s: 30}
  model: smollm2-135m
  class: critical
  deadline_ms: 10000
  prompt: "Smoke in the {{ topic[1] }}\
    {% if payload.temperature is defined %}, {{ payload.temperature }} C{% endif %}. What must people do first?"
  format: {type: object, properties: {instruction: {type: string}}, required: [instruction]}
  publish: "home/alerts/{{ topic[1] }}"
  fallback: {instruction: "Smoke reported. Leave the building and call for help."}
"""


def load(folder: Path, spec: str, head: str = HEAD, name: str = "a") -> AppSpec:
    """Load an app file with that spec."""
    file = folder / f"{name}.yaml"
    file.write_text(head + spec)
    return load_app(file)


def test_the_contracts_example(tmp_path: Path) -> None:
    """The app file that the contract shows is read as it means."""
    app = load(tmp_path, CONTRACT, "", "smoke-alarm")
    assert app.trigger is not None
    assert app.publish is not None
    assert (app.trigger.mqtt, app.trigger.queue, app.trigger.every_s, app.trigger.retained) == (
        "zigbee2mqtt/+/smoke",
        "latest",
        30,
        False,
    )
    assert (app.model, app.klass, app.deadline_ms) == ("smollm2-135m", Priority.CRITICAL, 10_000)
    message: dict[str, object] = {
        "topic": ["zigbee2mqtt", "kitchen", "smoke"],
        "payload": {"smoke": True, "temperature": 61},
    }
    assert app.prompt.render(message) == "Smoke in the kitchen, 61 C. What must people do first?"
    assert app.publish.render(message) == "home/alerts/kitchen"
    assert app.fallback == b'{"instruction": "Smoke reported. Leave the building and call for help."}'
    assert app.shape["class"] == "critical"


def test_the_least_that_an_app_needs(tmp_path: Path) -> None:
    """A prompt is enough; the rest is left to the node."""
    app = load(tmp_path, PROMPT)
    assert (app.trigger, app.model, app.klass, app.deadline_ms, app.max_tokens) == (
        None,
        None,
        Priority.NORMAL,
        None,
        None,
    )
    assert app.prompt.render({"input": "Hello"}) == "Hello"


def test_the_apps_that_ship() -> None:
    """The five apps load; text or an object is fine where the app says so."""
    apps = load_apps(["translate", "summarize", "support", "codegen", "smoke-alarm"], [Path("/nowhere"), SHIPPED])
    assert apps["translate"].prompt.render({"input": "Hi"}) == "Translate into French: Hi"
    assert apps["translate"].prompt.render({"input": {"text": "Hi", "to": "German"}}) == "Translate into German: Hi"
    assert all(
        apps[name].prompt.render({"input": "some text"}).count("some text") == 1
        for name in ("summarize", "support", "codegen")
    )
    assert apps["smoke-alarm"].fallback


@pytest.mark.parametrize("folder", [SHIPPED, resource("configs") / "demo" / "apps"], ids=["shipped", "demo"])
def test_the_alarm_asks_without_inventing_a_temperature(folder: Path) -> None:
    """With and without a temperature the prompts differ, and only one speaks of degrees."""
    app = load_apps(["smoke-alarm"], [folder])["smoke-alarm"]
    topic = ["zigbee2mqtt", "kitchen", "smoke"]
    hot = app.prompt.render({"topic": topic, "payload": {"smoke": True, "temperature": 61}})
    plain = app.prompt.render({"topic": topic, "payload": {"smoke": True}})
    assert hot.endswith("Smoke in the kitchen, 61 C:")
    assert plain.endswith("Smoke in the kitchen:")
    assert " C" not in plain


def test_the_alarm_of_the_demo_differs_by_its_rate_alone() -> None:
    """What the demo shows is what ships."""
    shapes = [dict(load_app(it / "smoke-alarm.yaml").shape) for it in (SHIPPED, SHIPPED.parent / "demo" / "apps")]
    triggers = [shape.pop("trigger") for shape in shapes]
    assert shapes[0] == shapes[1]
    assert [isinstance(it, dict) and it.get("every_s") for it in triggers] == [30, None]


def test_the_users_app_comes_first(tmp_path: Path) -> None:
    """A file in the user's folder overrides the one that ships."""
    (tmp_path / "support.yaml").write_text(HEAD.replace("name: a", "name: support") + PROMPT)
    assert load_apps(["support"], [tmp_path, SHIPPED])["support"].description == "An app."


def test_an_unknown_app_has_a_suggestion() -> None:
    """A misspelt app is met with the one that was meant."""
    with pytest.raises(ConfigError, match='no app "sumarize"; did you mean "summarize"'):
        load_apps(["sumarize"], [SHIPPED])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("  max_tokens: 5\n", 'spec: the key "prompt" is missing'),
        (PROMPT + "  promt: x\n", 'did you mean "prompt"'),
        ('  prompt: "{{ payload }}"\n', 'there is no "payload" here'),
        ('  prompt: "{{ input"\n', "no template"),
        (PROMPT + "  class: urgent\n", "is not one of: batch"),
        (PROMPT + "  temperature: 3\n", "out of range"),
        (PROMPT + "  deadline_ms: 5s\n", "expected a whole number"),
        (PROMPT + "  format: text\n", "a JSON schema"),
        (PROMPT + "  publish: a/b\n", "spec.publish: needs a trigger"),
        ("  trigger: {mqtt: a/b}\n  prompt: x\n", "spec.trigger: an app with a trigger needs `publish`"),
        ("  trigger: {}\n  publish: x\n  prompt: x\n", 'spec.trigger: the key "mqtt" is missing'),
        (TRIGGER.replace("devices/+/smoke", '"a/#/b"'), "'#' stands alone"),
        (TRIGGER.replace("devices/+/smoke", '"a/b+"'), "'+' stands alone"),
        (TRIGGER.replace("devices/+/smoke", '"#"'), "the node's own topics trigger nothing"),
        (
            TRIGGER.replace("devices/+/smoke", "llmasos/v1/home/kitchen/metrics"),
            "the node's own topics trigger nothing",
        ),
        (TRIGGER.replace("smoke}", 'smoke, when: "payload."}'), "no condition"),
        (TRIGGER.replace("smoke}", 'smoke, when: "input"}'), 'there is no "input" here'),
        (TRIGGER.replace("smoke}", "smoke, queue: newest}"), "is not one of: latest, every, coalesce"),
        (TRIGGER.replace("smoke}", "smoke, queue: every, every_s: 3}"), "take coalesce or latest"),
        (TRIGGER.replace("home/alerts", '"home/+"'), "no wildcards"),
        (TRIGGER.replace("home/alerts", '"home/{{ topic[1] }}/#"'), "no wildcards"),
        (TRIGGER.replace("home/alerts", "devices/kitchen/smoke"), "would trigger this app again"),
        (TRIGGER.replace("home/alerts", "llmasos/v1/home/kitchen/status"), "not for apps"),
        (TRIGGER + "  fallback: Leave.\n", "needs `deadline_ms`"),
        (TRIGGER + "  deadline_ms: 1\n  fallback: {a: 1}\n", "must be text"),
        (
            TRIGGER + "  deadline_ms: 1\n  format: {type: object, required: [b]}\n  fallback: {a: 1}\n",
            "'b' is a required property",
        ),
    ],
)
def test_wrong_apps(tmp_path: Path, spec: str, says: str) -> None:
    """Every mistake is found when the file is read, with its line."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, spec)
    assert says in caught.value.message
    assert f"{tmp_path}/a.yaml:" in caught.value.message


def test_the_name_is_the_files(tmp_path: Path) -> None:
    """An app that calls itself otherwise than its file would not be found."""
    with pytest.raises(ConfigError, match='must be the file\'s name, "b"'):
        load(tmp_path, PROMPT, name="b")


def test_check_raises_for_what_could_not_run(tmp_path: Path) -> None:
    """The check is the loading."""
    check_app(SHIPPED / "translate.yaml")
    with pytest.raises(ConfigError):
        check_app(tmp_path / "none.yaml")
