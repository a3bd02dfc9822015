"""The app file: read strictly, its templates, condition, schema and fallback checked before any run."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmasos_edge.apps.answer import AnswerFormat
from llmasos_edge.apps.template import Condition, Template
from llmasos_edge.apps.trigger import QueueKind, Trigger
from llmasos_edge.config import values
from llmasos_edge.config.section import Section, root, suggestion
from llmasos_edge.config.yaml_reader import read_yaml
from llmasos_edge.errors import ConfigError
from llmasos_edge.ipc.topics import filter_fault, matches, topic_fault
from llmasos_edge.kernel.units import Priority

MESSAGE_VARIABLES = ("topic", "payload")
RUN_VARIABLES = ("input",)

_QUEUES: dict[str, QueueKind] = {"latest": "latest", "every": "every", "coalesce": "coalesce"}
_BLANK = Template("", ())


@dataclass(frozen=True, slots=True)
class AppSpec:
    """An app. What is None is left to the node's defaults; `publish` and `fallback` are for what a trigger starts.

    `shape` has the file's `spec` as JSON values, for `app show`.
    """

    name: str
    description: str
    trigger: Trigger | None
    model: str | None
    klass: Priority
    deadline_ms: int | None
    max_tokens: int | None
    temperature: float | None
    system: Template | None
    prompt: Template
    format: AnswerFormat
    publish: Template | None
    fallback: bytes | None
    shape: Mapping[str, object]


def load_app(path: Path) -> AppSpec:
    """Read an app file. ConfigError names the file, line and key of everything that is wrong."""
    document = read_yaml(path)
    with root(document, "App") as top:
        with top.section("metadata") as metadata:
            name = metadata.need("name", values.name, path.stem)
            description = metadata.need("description", values.text, "")
            if name != path.stem:
                metadata.report("name", f'"{name}" must be the file\'s name, "{path.stem}"')
        with top.section("spec") as spec:
            app = _app(spec, name, description)
    document.finish()
    return app


def check_app(path: Path) -> None:
    """Raise the ConfigError of an app file that could not run."""
    load_app(path)


def load_apps(names: Iterable[str], folders: Iterable[Path]) -> dict[str, AppSpec]:
    """The named apps, each from the first folder that has it (so the user's come before those that ship)."""
    files: dict[str, Path] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.yaml")):
            files.setdefault(file.stem, file)
    found: dict[str, AppSpec] = {}
    for name in names:
        if name not in files:
            raise ConfigError(f'spec.apps: no app "{name}"{suggestion(name, files)}')
        found[name] = load_app(files[name])
    return found


def _app(spec: Section, name: str, description: str) -> AppSpec:
    trigger = _trigger(spec)
    variables = (*MESSAGE_VARIABLES, *RUN_VARIABLES) if trigger else RUN_VARIABLES
    answer = spec.take("format", AnswerFormat.read, AnswerFormat(None))
    app = AppSpec(
        name=name,
        description=description,
        trigger=trigger,
        model=spec.take("model", values.name, None),
        klass=spec.take("class", values.priority, Priority.NORMAL),
        deadline_ms=spec.take("deadline_ms", values.integer(1, 7 * 24 * 3_600_000), None),
        max_tokens=spec.take("max_tokens", values.integer(1, 1_000_000), None),
        temperature=spec.take("temperature", values.number(0, 2), None),
        system=_optional(spec, "system", _template(variables)),
        prompt=spec.need("prompt", _template(variables), _BLANK),
        format=answer,
        publish=_optional(spec, "publish", _publish(trigger)),
        fallback=spec.take("fallback", answer.checked, None),
        shape=spec.plain(),
    )
    _refuse_loose_ends(spec, trigger)
    return app


def _trigger(spec: Section) -> Trigger | None:
    with spec.section("trigger") as trigger:
        mqtt = trigger.need("mqtt", _filter, "") if "trigger" in spec else ""
        when = trigger.take("when", _condition, None)
        queue = trigger.take("queue", values.one_of(_QUEUES), _QUEUES["latest"])
        every_s = trigger.take("every_s", values.number(0, 7 * 24 * 3600), 0.0)
        retained = trigger.take("retained", values.flag, False)
        if queue == "every" and every_s:
            trigger.report(
                "every_s", "`queue: every` runs each message at once: for a rate limit, take coalesce or latest"
            )
    return Trigger(mqtt, when, queue, every_s, retained) if "trigger" in spec else None


def _refuse_loose_ends(spec: Section, trigger: Trigger | None) -> None:
    if trigger and "publish" not in spec:
        spec.report("trigger", "an app with a trigger needs `publish`: nobody else waits for its answer")
    for key in ("publish", "fallback"):
        if key in spec and trigger is None:
            spec.report(key, "needs a trigger: an app without one answers whoever runs it")
    if "fallback" in spec and "deadline_ms" not in spec:
        spec.report("fallback", "needs `deadline_ms`: the moment at which it is published")


def _optional(spec: Section, key: str, read: Callable[[object], Template]) -> Template | None:
    found = spec.take(key, read, _BLANK)
    return None if found is _BLANK else found


def _filter(value: object) -> str:
    given = values.text(value)
    fault = filter_fault(given)
    if fault is None and (given.partition("/")[0] in ("+", "#", "llmasos") or given.startswith("$")):
        fault = "it must start with a level of the devices' own, so that the node's own topics trigger nothing"
    if fault:
        raise values.WrongValue(f'"{given[:80]}" is no filter for a trigger: {fault}')
    return given


def _condition(value: object) -> Condition | None:
    return Condition(values.text(value), MESSAGE_VARIABLES)


def _template(variables: Iterable[str]) -> Callable[[object], Template]:
    return lambda value: Template(values.text(value), variables)


def _publish(trigger: Trigger | None) -> Callable[[object], Template]:
    def read(value: object) -> Template:
        source = values.text(value)
        fault = topic_fault(source) if "{" in source else publish_fault(source, trigger)
        if fault:
            raise values.WrongValue(f'"{source[:80]}": {fault}')
        return Template(source, MESSAGE_VARIABLES)

    return read


def publish_fault(topic: str, trigger: Trigger | None) -> str | None:
    """What keeps an app with this trigger from publishing on a topic, or None."""
    if topic.startswith("$") or topic.partition("/")[0] == "llmasos":
        return "topics under `$` and `llmasos/` are not for apps: the node speaks there for itself"
    if trigger and trigger.mqtt and matches(trigger.mqtt, topic):
        return "it would trigger this app again"
    return topic_fault(topic)
