"""The tests of the node file: what it may say, what it leaves to defaults, and every way to be wrong."""

import json
from pathlib import Path

import pytest

from llmasos_edge.config.board import load_board
from llmasos_edge.config.load import load_node
from llmasos_edge.config.node import NodeConfig, effective
from llmasos_edge.errors import ConfigError
from llmasos_edge.kernel.units import Priority
from llmasos_edge.resources import resource

BOARDS = resource("board")
PI_4 = load_board("raspberry-pi-4", BOARDS)
HEAD = "apiVersion: llmasos/v1\nkind: Node\nmetadata: {name: kitchen, site: home}\nspec:\n"
MODELS = "  models: [{name: smollm2-135m}]\n"


def load(folder: Path, spec: str, head: str = HEAD) -> NodeConfig:
    """The configuration of a node file with that spec, on a Raspberry Pi 4."""
    file = folder / "node.yaml"
    file.write_text(head + spec)
    return load_node(file, boards=BOARDS, board=PI_4)


def refusal(folder: Path, spec: str, head: str = HEAD) -> str:
    """The message of the ConfigError that the spec earns, without the folder."""
    with pytest.raises(ConfigError) as caught:
        load(folder, spec, head)
    return caught.value.message.replace(f"{folder}/", "")


def test_the_shortest_node(tmp_path: Path) -> None:
    """What a file leaves out comes from the board, then from the defaults."""
    config = load(tmp_path, MODELS)
    assert (config.name, config.site, config.board) == ("kitchen", "home", PI_4)
    assert (config.models[0].context, config.models[0].sequences) == (2048, 8)
    assert (config.models[0].kv, config.models[0].kv_pool, config.models[0].exact) == ("q8_0", None, False)
    assert (config.memory.budget, config.memory.arena, config.memory.fit) == (None, 64 * 2**20, "best-fit")
    assert (config.scheduler.policy, config.scheduler.quantum_ms, config.scheduler.decode_target_ms) == (
        "priority",
        200,
        150,
    )
    assert config.scheduler.record is None
    assert (config.mqtt, config.http, config.apps, config.apps_dir) == (None, None, (), Path("/etc/llmasos/apps"))
    assert config.sessions.keep_s == 7 * 24 * 3600


def test_a_recommended_context(tmp_path: Path) -> None:
    """A model that the board knows gets the board's context for it, any other the board's default."""
    both = MODELS.replace("}]", "}, {name: other}]")
    models = load(tmp_path, "  board: raspberry-pi-5\n" + both).models
    assert [model.context for model in models] == [8192, 4096]


def test_everything_that_a_node_may_say(tmp_path: Path) -> None:
    """Each key of the contract arrives where it belongs."""
    config = load(
        tmp_path,
        """
  board: raspberry-pi-5
  memory: {budget: 1536MiB, arena: 256MiB, fit: best-fit, replacement: clock, swap: {path: swap, size: 2GiB}}
  scheduler:
    policy: fcfs
    quantum_ms: 100
    decode_target_ms: 50
    max_waiting: 9
    max_waiting_per_client: 3
    model_wait_ms: 800
    record: node.workload
  mqtt: {url: "mqtts://broker.lan", user: kitchen, password_file: pw, ca_file: /ca.pem, trust: acl}
  http: {listen: "[::1]:8000"}
  models:
    - {name: a, context: 1024, sequences: 2, kv_pool: 2048, kv: f16, exact: true, pin: true}
    - {name: b, kv_pool: auto}
  apps: [summarize]
  apps_dir: apps
  clients: [{name: panel, ceiling: interactive, operate: true, reply_topics: [home/panel]}]
  sessions: {keep: 1h, quota: 10MiB}
""",
    )
    assert config.board.name == "raspberry-pi-5"
    assert config.memory.swap is not None
    assert (config.memory.swap.path, config.memory.swap.size) == (tmp_path / "swap", 2**31)
    assert (config.scheduler.policy, config.scheduler.quantum_ms) == ("fcfs", 100)
    assert (config.scheduler.max_waiting, config.scheduler.max_waiting_per_client) == (9, 3)
    assert (config.memory.replacement, config.scheduler.model_wait_ms) == ("clock", 800)
    assert config.scheduler.record == tmp_path / "node.workload"
    mqtt = config.mqtt
    assert mqtt is not None
    assert (mqtt.host, mqtt.port, mqtt.tls, mqtt.trust, mqtt.managed) == ("broker.lan", 8883, True, "acl", False)
    assert (mqtt.user, mqtt.password_file, mqtt.ca_file) == ("kitchen", tmp_path / "pw", Path("/ca.pem"))
    assert config.http is not None
    assert (config.http.host, config.http.port) == ("::1", 8000)
    assert (config.models[0].kv_pool, config.models[0].exact, config.models[0].pin) == (2048, True, True)
    assert config.apps_dir == tmp_path / "apps"
    assert config.clients[0].reply_topics == ("home/panel",)
    assert (config.sessions.keep_s, config.sessions.quota) == (3600, 10 * 2**20)


@pytest.mark.parametrize(
    ("mqtt", "trust", "ceiling"),
    [
        ('{url: "mqtt://127.0.0.1"}', "open", Priority.NORMAL),
        ('{url: "mqtt://127.0.0.1", trust: acl}', "acl", Priority.CRITICAL),
        ("{managed: true}", "acl", Priority.CRITICAL),
        ("{managed: true, port: 18830, trust: open}", "open", Priority.NORMAL),
    ],
)
def test_trust_sets_the_ceiling(tmp_path: Path, mqtt: str, trust: str, ceiling: Priority) -> None:
    """Someone's broker is not believed unless the file says so; our own is."""
    config = load(tmp_path, f"{MODELS}  mqtt: {mqtt}\n  clients: [{{name: panel}}]\n")
    assert config.mqtt is not None
    assert (config.mqtt.trust, config.clients[0].ceiling) == (trust, ceiling)


def test_an_unknown_key_is_met_with_the_one_meant(tmp_path: Path) -> None:
    """The error has file, line, key path and suggestion."""
    message = refusal(tmp_path, MODELS + "  memory:\n    budgte: 1GiB\n")
    assert message == 'node.yaml:7: spec.memory.budgte: unknown key; did you mean "budget"?'


def test_all_errors_come_at_once(tmp_path: Path) -> None:
    """One run of the check tells everything, in the order of the file."""
    message = refusal(
        tmp_path, "  memory: {budget: 12, fit: tight}\n  models: [{name: a b, contxt: 1}]\n  colour: red\n"
    )
    rows = [row.split(": ")[1] for row in message.splitlines()]
    assert rows == [
        "spec.memory.budget",
        "spec.memory.fit",
        "spec.models[0].contxt",
        "spec.models[0].name",
        "spec.colour",
    ]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("  models: []\n", "spec.models: a node needs one model at least"),
        ("  models: {name: a}\n", "spec.models: expected a list, not a mapping"),
        ("  models: [{}]\n", 'spec.models[0]: the key "name" is missing'),
        ("  models: [{name: no}]\n", "expected text, not false (quote it"),
        ("  models: [{name: a}, {name: a}]\n", 'spec.models[1]: "a" is there twice'),
        ("  models: [{name: a, context: 2048, kv_pool: 1024}]\n", "1024 cells can't hold one task of 2048 tokens"),
        ("  models: [{name: a, sequences: 257}]\n", "257 is out of range: 1 to 256"),
        ("  models: [{name: a, context: 4096.5}]\n", "expected a whole number"),
        ("  models: [{name: a, context: true}]\n", "expected a whole number"),
        ("  models: [{name: a, kv: q4_0}]\n", "is not one of: q8_0, f16"),
        ("  models: [{name: a, exact: 1}]\n", "expected true or false"),
        (MODELS + "  memory: {budget: 64MiB}\n", "spec.memory.budget: the arena must be smaller"),
        (MODELS + "  memory: {budget: 0MiB}\n", "must be more than nothing"),
        (MODELS + "  memory: {replacement: fifo}\n", "is not one of: cost, lru, clock"),
        (MODELS + "  scheduler: {model_wait_ms: -1}\n", "-1 is out of range"),
        (MODELS + "  memory: {swap: {path: x}}\n", 'spec.memory.swap: the key "size" is missing'),
        (MODELS + "  memory: {swap: {size: 1GiB}}\n", 'spec.memory.swap: the key "path" is missing'),
        (MODELS + "  memory:\n", "spec.memory: expected a mapping (key: value), not empty"),
        (
            MODELS + "  scheduler: {policy: lottery}\n",
            "is not one of: fcfs, sjf, round-robin, priority, deadline, fair-share",
        ),
        (MODELS + "  mqtt: {}\n", "needs either `url`"),
        (MODELS + '  mqtt: {managed: true, url: "mqtt://x"}\n', "needs either `url`"),
        (MODELS + '  mqtt: {url: "mqtt://x", port: 1}\n', "spec.mqtt.port: belongs in the `url`"),
        (MODELS + "  mqtt: {managed: true, user: x}\n", "spec.mqtt.user: belongs to a `url`"),
        (MODELS + '  mqtt: {url: "mqtt://x", password_file: y}\n', "needs a `user` too"),
        (MODELS + '  mqtt: {url: "http://x"}\n', "is no broker address"),
        (MODELS + '  mqtt: {url: "mqtt://u:p@x"}\n', "use `user` and `password_file`"),
        (MODELS + '  mqtt: {url: "mqtt://x:99999"}\n', "is no address"),
        (MODELS + '  mqtt: {url: "mqtt://x/y"}\n', "nothing may follow the port"),
        (MODELS + "  http: {listen: localhost}\n", "write HOST:PORT"),
        (MODELS + '  http: {listen: "::1:8000"}\n', "write HOST:PORT"),
        (MODELS + "  apps: [a, a]\n", 'spec.apps[1]: "a" is there twice'),
        (MODELS + "  apps: [../etc]\n", "spec.apps[0]"),
        (MODELS + '  clients: [{name: "a/b"}]\n', "is no name"),
        (MODELS + "  clients: [{name: a, reply_topics: [a/#]}]\n", "spec.clients[0].reply_topics[0]"),
        (MODELS + "  clients: [{name: a, ceiling: urgent}]\n", "is not one of: batch, normal"),
        (MODELS + '  mqtt: {url: "mqtt://x"}\n  clients: [{name: a, ceiling: critical}]\n', "`normal` at most"),
        (MODELS + '  mqtt: {url: "mqtt://x"}\n  clients: [{name: a, operate: true}]\n', "no model operations"),
        (MODELS + "  sessions: {keep: 7}\n", "7 has no unit"),
        (MODELS + "  board: raspberry-pi-6\n", "spec.board: "),
    ],
)
def test_wrong_values(tmp_path: Path, spec: str, says: str) -> None:
    """Every wrong value is named, with what to do."""
    assert says in refusal(tmp_path, spec)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (HEAD.replace("kitchen", "any"), '"any" is reserved'),
        (HEAD.replace("kitchen", "x" * 65), "metadata.name"),
        (HEAD.replace("Node", "App"), 'kind: must be "Node", not "App"'),
        (HEAD.replace("v1", "v2"), 'apiVersion: must be "llmasos/v1"'),
        (HEAD.replace("kind: Node\n", ""), 'the key "kind" is missing'),
        (HEAD.replace("name: kitchen", "nmae: kitchen"), 'did you mean "name"'),
    ],
)
def test_wrong_heads(tmp_path: Path, head: str, says: str) -> None:
    """The head of the file is checked as strictly."""
    assert says in refusal(tmp_path, MODELS, head)


@pytest.mark.parametrize("content", ["", "[]", "text", "spec: 1"])
def test_what_is_no_node_at_all(tmp_path: Path, content: str) -> None:
    """A file of another kind is a ConfigError, not a crash."""
    assert "apiVersion" in refusal(tmp_path, content, "")


@pytest.mark.parametrize("name", ["node.yaml", "demo.yaml", "appliance.yaml"])
def test_the_nodes_that_ship(name: str) -> None:
    """The examples load on every board, and can be shown as JSON."""
    for file in BOARDS.glob("*.yaml"):
        config = load_node(resource("configs") / name, boards=BOARDS, board=load_board(file.stem, BOARDS))
        shown = json.loads(json.dumps(effective(config)))
        assert shown["models"][0]["name"] == "smollm2-135m"
        assert shown["mqtt"]["trust"] == "acl"
