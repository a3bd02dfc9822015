"""The node's configuration as frozen values: what the daemon is started with, whatever file it came from."""

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Literal

from llmasos_edge.config.board import Board
from llmasos_edge.kernel.units import Bytes, Priority

Trust = Literal["acl", "open"]
KvType = Literal["q8_0", "f16"]

DEFAULT_ARENA = Bytes(64 * 2**20)
DEFAULT_QUOTA = Bytes(256 * 2**20)
DEFAULT_APPS_DIR = Path("/etc/llmasos/apps")


@dataclass(frozen=True, slots=True)
class SwapConfig:
    path: Path
    size: Bytes


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """`budget` None: what the board leaves of the machine's RAM (Board.budget)."""

    budget: Bytes | None = None
    arena: Bytes = DEFAULT_ARENA
    fit: str = "best-fit"
    replacement: str = "cost"
    swap: SwapConfig | None = None


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """`record`: the file that the node's workload is recorded into, for `llmasos-simulate`."""

    policy: str = "priority"
    quantum_ms: int = 200
    decode_target_ms: int = 150
    max_waiting: int = 1024
    max_waiting_per_client: int = 256
    model_wait_ms: int = 5_000
    record: Path | None = None


@dataclass(frozen=True, slots=True)
class MqttConfig:
    """A broker: `url` names someone's (host, port and tls come from it); `managed`: the node runs its own on loopback.

    A managed broker's port 0 means any free one. `trust` `acl`: the client in a topic is proof of who called.
    """

    trust: Trust
    managed: bool
    host: str
    port: int
    url: str | None = None
    tls: bool = False
    user: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class HttpConfig:
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """`context`: tokens of the longest single task; `kv_pool`: cells for all sequences (None: sized by the kernel)."""

    name: str
    context: int = 4096
    sequences: int = 16
    kv_pool: int | None = None
    kv: KvType = "q8_0"
    exact: bool = False
    pin: bool = False


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """`operate`: may load, drop and pull models. `reply_topics`: allowed besides the client's own."""

    name: str
    ceiling: Priority
    operate: bool = False
    reply_topics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SessionsConfig:
    """How long an idle session is kept, and how many bytes of state all sessions of one client may hold."""

    keep_s: int = 7 * 24 * 3600
    quota: Bytes = DEFAULT_QUOTA


@dataclass(frozen=True, slots=True)
class NodeConfig:
    api: str
    name: str
    site: str
    board: Board
    models: tuple[ModelConfig, ...]
    memory: MemoryConfig = MemoryConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    mqtt: MqttConfig | None = None
    http: HttpConfig | None = None
    apps: tuple[str, ...] = ()
    apps_dir: Path = DEFAULT_APPS_DIR
    clients: tuple[ClientConfig, ...] = ()
    sessions: SessionsConfig = SessionsConfig()


def effective(config: NodeConfig) -> dict[str, object]:
    """The configuration as JSON values: sizes in bytes, classes by name, paths as text."""
    return {it.name: _plain(getattr(config, it.name)) for it in fields(config)}


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {it.name: _plain(getattr(value, it.name)) for it in fields(value)}
    if isinstance(value, tuple):
        return [_plain(it) for it in value]
    if isinstance(value, Priority):
        return value.name.lower()
    return str(value) if isinstance(value, Path) else value
