"""The way from a node file to a NodeConfig: defaults, then the board's, then the file's; all its errors at once."""

from pathlib import Path

from llmasos_edge.config import values
from llmasos_edge.config.addresses import broker_url, listen_address
from llmasos_edge.config.board import Board, detect_board, load_board
from llmasos_edge.config.node import (
    DEFAULT_APPS_DIR,
    ClientConfig,
    HttpConfig,
    KvType,
    MemoryConfig,
    ModelConfig,
    MqttConfig,
    NodeConfig,
    SchedulerConfig,
    SessionsConfig,
    SwapConfig,
    Trust,
)
from llmasos_edge.config.section import API_VERSION, Section, root
from llmasos_edge.config.yaml_reader import read_yaml
from llmasos_edge.errors import ConfigError
from llmasos_edge.kernel.memory.fit import FITS
from llmasos_edge.kernel.memory.replacement import REPLACEMENTS
from llmasos_edge.kernel.scheduling.policies import POLICIES
from llmasos_edge.kernel.units import Bytes, Milliseconds, Priority

KV_TYPES: dict[str, KvType] = {"q8_0": "q8_0", "f16": "f16"}
TRUST: dict[str, Trust] = {"acl": "acl", "open": "open"}

_DEFAULT_SITE = "home"
_TARGET_MS = values.integer(1, 60_000)
_WAITING = values.integer(1, 100_000)
_MODEL_WAIT_MS = values.integer(0, 3_600_000)


def load_node(path: Path, *, boards: Path, board: Board | None = None) -> NodeConfig:
    """Read a node file strictly. `boards` is the folder of board files; `board` is what `auto` means (None: detect it).

    ConfigError names the file, the line and the key of everything that is wrong.
    """
    document = read_yaml(path)
    with root(document, "Node") as top:
        with top.section("metadata") as metadata:
            name = metadata.need("name", _node_name, "")
            site = metadata.take("site", values.name, _DEFAULT_SITE)
        with top.section("spec") as spec:
            config = _node(spec, name, site, _board(spec, boards, board))
    document.finish()
    return config


def _board(spec: Section, boards: Path, detected: Board | None) -> Board:
    wanted = spec.take("board", values.name, "auto")
    try:
        return load_board(wanted, boards) if wanted != "auto" else detected or detect_board(boards)
    except ConfigError as error:
        spec.report("board", error.message)
        spec.document.finish()
        raise


def _node_name(value: object) -> str:
    if values.name(value) == "any":
        raise ValueError('"any" is reserved: it stands for every node of the site')
    return values.name(value)


def _node(spec: Section, name: str, site: str, board: Board) -> NodeConfig:
    mqtt = _mqtt(spec)
    models = tuple(_model(it, board) for it in spec.sections("models"))
    if not models:
        spec.report("models", "a node needs one model at least, for example: [{name: smollm2-135m}]")
    _refuse_repeats(spec, "models", [it.name for it in models])
    apps = spec.items("apps", values.name)
    _refuse_repeats(spec, "apps", list(apps))
    clients = tuple(_client(it, mqtt) for it in spec.sections("clients"))
    _refuse_repeats(spec, "clients", [it.name for it in clients])
    return NodeConfig(
        api=API_VERSION,
        name=name,
        site=site,
        board=board,
        models=models,
        memory=_memory(spec, board),
        scheduler=_scheduler(spec),
        mqtt=mqtt,
        http=_http(spec),
        apps=apps,
        apps_dir=_take_path(spec, "apps_dir") or DEFAULT_APPS_DIR,
        clients=clients,
        sessions=_sessions(spec),
    )


def _refuse_repeats(spec: Section, key: str, names: list[str]) -> None:
    for index, name in enumerate(names):
        if name and name in names[:index]:
            spec.document.report((*spec.where, key, index), f'"{name}" is there twice')


def _take_path(section: Section, key: str) -> Path | None:
    """A path, relative to the file that names it."""
    given = section.take(key, values.text, "")
    return section.document.file.absolute().parent / given if given else None


def _memory(spec: Section, board: Board) -> MemoryConfig:
    with spec.section("memory") as memory:
        budget: Bytes | None = memory.take("budget", values.size, None)
        arena = memory.take("arena", values.size, board.defaults.arena)
        if budget is not None and arena >= budget:
            memory.report("arena" if "arena" in memory else "budget", "the arena must be smaller than the budget")
        fit = memory.take("fit", values.one_of({it: it for it in FITS}), MemoryConfig().fit)
        replacement = memory.take(
            "replacement", values.one_of({it: it for it in REPLACEMENTS}), MemoryConfig().replacement
        )
        with memory.section("swap") as swap:
            given = "swap" in memory
            path = _take_path(swap, "path")
            size = swap.need("size", values.size, Bytes(0)) if given else Bytes(0)
            if given and path is None:
                swap.document.report(swap.where, 'the key "path" is missing')
    return MemoryConfig(budget, arena, fit, replacement, SwapConfig(path, size) if path else None)


def _scheduler(spec: Section) -> SchedulerConfig:
    default = SchedulerConfig()
    with spec.section("scheduler") as scheduler:
        return SchedulerConfig(
            policy=scheduler.take("policy", values.one_of({it: it for it in POLICIES}), default.policy),
            quantum_ms=scheduler.take("quantum_ms", _TARGET_MS, default.quantum_ms),
            decode_target_ms=scheduler.take("decode_target_ms", _TARGET_MS, default.decode_target_ms),
            max_waiting=scheduler.take("max_waiting", _WAITING, default.max_waiting),
            max_waiting_per_client=scheduler.take("max_waiting_per_client", _WAITING, default.max_waiting_per_client),
            model_wait_ms=scheduler.take("model_wait_ms", _MODEL_WAIT_MS, default.model_wait_ms),
            record=_take_path(scheduler, "record"),
        )


def _model(section: Section, board: Board) -> ModelConfig:
    with section as model:
        name = model.need("name", values.name, "")
        context = model.take("context", values.context, board.context(name))
        pool = model.take("kv_pool", _kv_pool, None)
        if pool is not None and pool < context:
            model.report("kv_pool", f"{pool} cells can't hold one task of {context} tokens (context)")
        return ModelConfig(
            name=name,
            context=context,
            sequences=model.take("sequences", values.sequences, board.defaults.sequences),
            kv_pool=pool,
            kv=model.take("kv", values.one_of(KV_TYPES), "q8_0"),
            exact=model.take("exact", values.flag, False),
            pin=model.take("pin", values.flag, False),
        )


def _kv_pool(value: object) -> int | None:
    return None if value == "auto" else values.integer(64, 2**24)(value)


def _mqtt(spec: Section) -> MqttConfig | None:
    with spec.section("mqtt") as mqtt:
        managed = mqtt.take("managed", values.flag, False)
        broker = mqtt.take("url", broker_url, None)
        trust: Trust = mqtt.take("trust", values.one_of(TRUST), TRUST["acl" if managed else "open"])
        port = mqtt.take("port", values.integer(0, 65535), 0)
        user: str | None = mqtt.take("user", values.text, None)
        password_file, ca_file = _take_path(mqtt, "password_file"), _take_path(mqtt, "ca_file")
        if "mqtt" not in spec:
            return None
        _refuse_mixture(mqtt, managed)
    if broker is None:
        return MqttConfig(trust=trust, managed=managed, host="127.0.0.1", port=port)
    return MqttConfig(
        trust, False, broker.host, broker.port, broker.url, broker.tls, user, password_file, ca_file
    )  # fmt: skip


def _refuse_mixture(mqtt: Section, managed: bool) -> None:
    if managed == ("url" in mqtt):
        mqtt.document.report(
            mqtt.where, "needs either `url` (a broker that is there) or `managed: true` (one of our own)"
        )
    foreign = ("user", "password_file", "ca_file") if managed else ("port",)
    reason = "belongs to a `url`, not to a managed broker" if managed else "belongs in the `url` of a foreign broker"
    for key in foreign:
        if key in mqtt:
            mqtt.report(key, reason)
    if "password_file" in mqtt and "user" not in mqtt:
        mqtt.report("password_file", "needs a `user` too")


def _http(spec: Section) -> HttpConfig | None:
    with spec.section("http") as http:
        if "http" not in spec:
            return None
        host, port = http.need("listen", listen_address, ("", 0))
        return HttpConfig(host, port)


def _client(section: Section, mqtt: MqttConfig | None) -> ClientConfig:
    is_open = mqtt is not None and mqtt.trust == "open"
    highest = Priority.NORMAL if is_open else Priority.CRITICAL
    with section as client:
        ceiling = client.take("ceiling", values.priority, highest)
        operate = client.take("operate", values.flag, False)
        if ceiling > highest:
            client.report("ceiling", "with mqtt.trust `open` a client's name is no proof: `normal` at most")
        if operate and is_open:
            client.report("operate", "with mqtt.trust `open` a client's name is no proof: no model operations")
        return ClientConfig(
            name=client.need("name", values.name, ""),
            ceiling=ceiling,
            operate=operate,
            reply_topics=client.items("reply_topics", _reply_topic),
        )


def _reply_topic(value: object) -> str:
    topic = values.text(value)
    if set(topic) & set("+#\0") or topic.startswith("$"):
        raise ValueError(f'"{topic[:40]}" is no topic to publish on: no wildcards, and no $ at its head')
    return topic


def _sessions(spec: Section) -> SessionsConfig:
    default = SessionsConfig()
    with spec.section("sessions") as sessions:
        keep = sessions.take("keep", values.duration, Milliseconds(default.keep_s * 1000))
        return SessionsConfig(max(1, keep // 1000), sessions.take("quota", values.size, default.quota))
