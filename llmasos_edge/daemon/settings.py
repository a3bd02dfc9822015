"""What a node file says, as the parts of a node take it: at the start, and again at each reload, while tasks run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from llmasos_edge.daemon.machine import DAEMON_BYTES
from llmasos_edge.errors import ConfigError, LLMasOSError
from llmasos_edge.kernel.memory.replacement import REPLACEMENTS
from llmasos_edge.kernel.processor import Phase
from llmasos_edge.kernel.scheduling.batch import Targets
from llmasos_edge.kernel.scheduling.policies import POLICIES
from llmasos_edge.kernel.units import Bytes, ClientId, Milliseconds, ModelId
from llmasos_edge.services import monitor
from llmasos_edge.services.security import Caller

if TYPE_CHECKING:
    from llmasos_edge.api.calls import Json
    from llmasos_edge.config.node import ModelConfig, NodeConfig, SchedulerConfig
    from llmasos_edge.daemon.node import Node

# keys that a reload applies
LIVE: Final = ("memory.budget", "memory.replacement", "scheduler", "models", "apps", "apps_dir", "clients")
AT_START: Final[Mapping[str, str]] = {  # keys that only a start applies, and the attributes that hold them
    "metadata.name": "name",
    "metadata.site": "site",
    "board": "board",
    "memory.arena": "memory.arena",
    "memory.fit": "memory.fit",
    "memory.swap": "memory.swap",
    "scheduler.record": "scheduler.record",
    "mqtt": "mqtt",
    "http": "http",
    "sessions": "sessions",
}


def budget(config: NodeConfig) -> Bytes:
    return config.memory.budget or config.board.budget(Bytes(monitor.system_memory().total))


def room(config: NodeConfig) -> Bytes:
    """What the budget leaves for models."""
    return Bytes(budget(config) - DAEMON_BYTES - config.memory.arena)


def models(config: NodeConfig) -> dict[str, ModelConfig]:
    return {model.name: model for model in config.models}


def targets(scheduler: SchedulerConfig) -> Targets:
    return Targets(
        quantum_ms=Milliseconds(scheduler.quantum_ms),
        decode_ms=Milliseconds(scheduler.decode_target_ms),
        max_waiting=scheduler.max_waiting,
        max_waiting_per_client=scheduler.max_waiting_per_client,
        model_wait_ms=Milliseconds(scheduler.model_wait_ms),
    )


def callers(config: NodeConfig) -> list[Caller]:
    return [
        Caller(ClientId(client.name), client.ceiling, client.operate, client.reply_topics) for client in config.clients
    ]


def reload(node: Node, wanted: NodeConfig) -> Json:
    """Apply what can be applied while tasks run, and tell what waits. On the kernel's thread.

    Raises ConfigError and UnknownApp; nothing has changed then.
    """
    old, new = node.config, _startable(node.config, wanted)
    loader = node.kernel.loader
    if budget(new) < loader.ledger.charged:
        raise ConfigError(
            f"memory.budget: {budget(new) >> 20} MiB is less than the {loader.ledger.charged >> 20} MiB that are taken "
            "now: drop models first (`llmasos mem`), or restart the node"
        )
    node.hardware.configure(models(new), room(new))
    try:
        _check_room(node, new)
        node.apps.reload(new)
    except LLMasOSError:
        node.hardware.configure(models(old), room(old))
        raise
    loader.ledger.resize(budget(new))
    loader.replacement = REPLACEMENTS[new.memory.replacement]
    node.kernel.scheduler, node.kernel.targets = POLICIES[new.scheduler.policy](), targets(new.scheduler)
    node.security.know(callers(new))
    node.models.configure(models(new))
    node.door.accepting = replace(node.door.accepting, default_model=new.models[0].name)
    loader.refresh(removed={ModelId(name) for name in models(old).keys() - models(new).keys()})
    node.config = new
    node.restart_for = tuple(key for key, at in AT_START.items() if attrgetter(at)(old) != attrgetter(at)(wanted))
    return {"applied": [key for key in LIVE if attrgetter(key)(old) != attrgetter(key)(new)], **pending(node)}


def pending(node: Node) -> Json:
    """`waiting`: models that take their new settings when they are idle; `restart`: keys that take a restart."""
    stale = [each.model for each in node.kernel.loader.processors() if each.stale and each.phase is not Phase.UNLOADED]
    return {"waiting": stale, "restart": list(node.restart_for)}


def _startable(old: NodeConfig, wanted: NodeConfig) -> NodeConfig:
    """The wanted configuration as far as it can be had without a restart."""
    memory = replace(wanted.memory, arena=old.memory.arena, fit=old.memory.fit, swap=old.memory.swap)
    return replace(
        wanted,
        name=old.name,
        site=old.site,
        board=old.board,
        memory=memory,
        scheduler=replace(wanted.scheduler, record=old.scheduler.record),
        mqtt=old.mqtt,
        http=old.http,
        sessions=old.sessions,
    )


def _check_room(node: Node, new: NodeConfig) -> None:
    """Raises ConfigError if a model can't be loaded beside those that are pinned: its tasks would wait for ever."""
    costs = {each.name: sum(it.bytes for it in node.hardware.footprint(ModelId(each.name))) for each in new.models}
    pinned = {each.name for each in new.models if each.pin}
    for name in costs:
        needed = sum(costs[each] for each in {name, *pinned})
        if needed > room(new):
            raise ConfigError(
                f"models: {name} and the pinned models need {needed >> 20} MiB, and memory.budget leaves "
                f"{room(new) >> 20} MiB for models: raise it, or lower `kv_pool`, `context` or `sequences`"
            )
