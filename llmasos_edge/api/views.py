"""What callers see of the kernel: its tasks, models and memory as JSON values."""

from collections.abc import Mapping

from llmasos_edge.ipc.messages import class_name
from llmasos_edge.kernel.dispatcher import Kernel
from llmasos_edge.kernel.memory.arena import Arena
from llmasos_edge.kernel.processor import Processor
from llmasos_edge.kernel.swapper import Swapper
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import Milliseconds

Json = dict[str, object]


def task_row(task: Task, now: Milliseconds) -> Json:
    """A row of `ps`."""
    ended = task.ended_ms if task.ended_ms is not None else now
    ran = task.running_ms(now)
    return {
        "id": task.id,
        "state": task.state.name,
        "class": class_name(task.priority),
        "client": task.submission.client,
        "model": task.model,
        "session": task.submission.session,
        "app": task.submission.app,
        "prompt_tokens": task.prompt_tokens,
        "cached_tokens": task.cached_tokens,
        "generated_tokens": task.generated,
        "waiting_ms": max(0, ended - task.submitted_ms - ran),
        "running_ms": ran,
        "deadline_ms": task.submission.deadline_ms,
    }


def task_detail(task: Task, now: Milliseconds, position: int | None, eta_ms: int | None) -> Json:
    """`show`: the row, and what else there is to tell. A suspended task stands nowhere in line."""
    row = task_row(task, now)
    outcome = task.outcome
    if outcome is None:
        row |= {"position": position, "eta_ms": eta_ms}
    else:
        row["finish_reason"] = outcome.finish_reason or None
        row["error"] = outcome.error.wire() if outcome.error else None
    return row | {
        "reason": task.reason or None,
        "sequence": task.sequence,
        "max_tokens": task.submission.max_tokens,
        "preemptions": task.preemptions,
        "attempt": task.attempt,
        "saved_bytes": task.kv.bytes if task.kv else 0,
        "text": "".join(task.text),
    }


def model_state(processor: Processor) -> Json:
    """Where it is; `progress` from 0 to 1 while it is loaded."""
    state: Json = {"id": processor.model, "state": processor.state}
    return state if processor.progress is None else state | {"progress": processor.progress}


def model_row(processor: Processor, now: Milliseconds) -> Json:
    """Where a model is, and what it is doing."""
    return model_state(processor) | {
        "charged": processor.bytes,
        "idle_ms": now - processor.used_at if processor.used_at else None,
        "waiting": processor.live - len(processor.running),
        "context": processor.limits.context,
        "cells": processor.limits.cells,
        "sequences": processor.limits.sequences,
        "pinned": processor.limits.pinned,
        "running": len(processor.running),
        "ready": len(processor.ready),
        "weights": _weights(processor),
        "deterministic": processor.details.get("deterministic"),
        "sandbox": processor.details.get("sandbox"),
        "attention": processor.details.get("attention"),
    }


def memory(kernel: Kernel, measured: Mapping[str, int]) -> Json:
    """The shape of `mem`. `measured`: region name -> bytes that the system reports."""
    ledger = kernel.loader.ledger
    models = [
        {
            "id": each.model,
            "state": each.state,
            "charged": each.bytes,
            "measured": sum(measured.get(region.name, 0) for region in each.regions),
        }
        for each in kernel.loader.processors()
    ]
    return {
        "budget": ledger.budget,
        "charged": ledger.charged,
        "measured": sum(measured.values()),
        "pressure": pressure(kernel),
        "regions": [_region(region.name, region.kind, region.bytes, measured) for region in ledger.regions()],
        "arena": arena(kernel.swapper.arena),
        "swap": swap(kernel.swapper),
        "models": models,
        "sessions": sessions(kernel.swapper),
    }


def pressure(kernel: Kernel) -> Json:
    """Memory pressure: `none`, `park`, `drop` or `refuse`, and why."""
    now = kernel.loader.pressure
    return {"level": now.level.word, "why": now.why or None}


def sessions(swapper: Swapper) -> Json:
    """How many have their state where."""
    return {residency.value: count for residency, count in swapper.census().items()}


def arena(of: Arena) -> Json:
    found = of.statistics()
    return {
        "size": found.size,
        "used": found.used,
        "extents": found.extents,
        "holes": found.holes,
        "largest_hole": found.largest_hole,
        "fragmentation": round(found.fragmentation, 4),
        "fit": of.fit,
    }


def swap(swapper: Swapper) -> Json:
    """As the arena, and what the disk has done since the start."""
    if swapper.swap is None or swapper.device is None:
        return {"size": 0, "used": 0}
    done = swapper.device.statistics()
    rate = done.read_bytes_per_ms
    return arena(swapper.swap) | {
        "writes": done.writes,
        "written": done.written,
        "reads": done.reads,
        "read": done.read,
        "read_bytes_per_s": None if rate is None else int(rate * 1000),
    }


def _weights(processor: Processor) -> str | None:
    """How a loaded model's weights lie in memory."""
    if not processor.regions:
        return None
    return "repacked" if any(region.name.endswith(".repacked") for region in processor.regions) else "mapped"


def _region(name: str, kind: str, size: int, measured: Mapping[str, int]) -> Json:
    row: Json = {"name": name, "kind": kind, "bytes": size}
    if name in measured:
        row["measured"] = measured[name]
    return row
