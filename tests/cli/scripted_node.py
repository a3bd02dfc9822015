"""A node of fixed answers behind a real control socket: what the command line's tests talk to."""

import threading
from typing import Any

from llmasos_edge.errors import BY_CODE, LLMasOSError
from llmasos_edge.ipc.control import Call

MIB = 2**20

STATUS = {
    "node": "kitchen",
    "site": "home",
    "board": "raspberry-pi-4",
    "version": "0.1.0",
    "boot_id": "b7",
    "state": "online",
    "ready": True,
    "since": "2026-11-23T17:00:00Z",
    "http": {"url": "http://127.0.0.1:8000", "port": 8000, "keys": None},
    "broker": {
        "url": "mqtt://127.0.0.1:18830",
        "port": 18830,
        "connected": True,
        "managed": False,
        "trust": "acl",
    },
    "models": [{"id": "smollm2-135m", "state": "loaded"}],
    "pressure": {"level": "drop", "why": "the machine has 12 of 800 MiB left"},
    "pending": {"waiting": [], "restart": ["mqtt"]},
    "apps": ["summarize"],
    "tasks": {"READY": 1, "RUNNING": 1, "BLOCKED": 0},
    "state_dir": "/nonexistent",
}
TASK = {
    "id": "b7-1",
    "state": "RUNNING",
    "class": "normal",
    "client": "control",
    "model": "smollm2-135m",
    "session": None,
    "app": None,
    "prompt_tokens": 38,
    "cached_tokens": 12,
    "generated_tokens": 7,
    "waiting_ms": 12,
    "running_ms": 3456,
    "deadline_ms": None,
}
EVIL_TASK = TASK | {"id": "b7-2", "state": "READY", "client": "x\x1b[31m\u202ey", "app": "summarize", "running_ms": 0}
MODEL = {
    "id": "smollm2-135m",
    "state": "loaded",
    "size": 98 * MIB,
    "charged": 274 * MIB,
    "idle_ms": 1500,
    "waiting": 3,
    "context": 4096,
    "sequences": 16,
    "kv": "q8_0",
    "pinned": True,
    "licence": "Apache-2.0",
    "deterministic": True,
    "weights": "mapped",
    "memory": {"first": {"charged": 208 * MIB, "measured": 200 * MIB}},
}
MEM = {
    "budget": 1536 * MIB,
    "charged": 342 * MIB,
    "pressure": {"level": "drop", "why": "the machine has 12 of 800 MiB left"},
    "measured": 300 * MIB,
    "regions": [
        {"name": "daemon", "kind": "process", "bytes": 45 * MIB},
        {"name": "arena", "kind": "arena", "bytes": 64 * MIB},
        {"name": "smollm2-135m weights", "kind": "weights", "bytes": 98 * MIB},
        {"name": "smollm2-135m kv", "kind": "kv", "bytes": 135 * MIB},
    ],
    "arena": {
        "size": 64 * MIB,
        "used": 10 * MIB,
        "extents": 3,
        "holes": 2,
        "largest_hole": 40 * MIB,
        "fragmentation": 0.26,
        "fit": "best-fit",
    },
    "swap": {"size": 0, "used": 0},
    "models": [{"id": "smollm2-135m", "state": "loaded", "charged": 233 * MIB, "measured": 251 * MIB}],
    "sessions": {"resident": 1, "parked": 2, "swapped": 0, "dropped": 0},
}
ARENA = {"size": 64 * MIB, "used": 10 * MIB, "holes": 3, "largest_hole": 20 * MIB}
COMPACTED = {
    "moved": 5 * MIB,
    "before": ARENA,
    "after": ARENA | {"holes": 1, "largest_hole": 54 * MIB},
    "swap_moving": 7 * MIB,
}
SESSION = {
    "session": "holiday",
    "client": "phone",
    "state": "swapped",
    "model": "smollm2-135m",
    "messages": 6,
    "tokens": 512,
    "bytes": 6 * MIB,
    "idle_ms": 90_000,
}
SESSION_DETAIL = {
    "session": "holiday",
    "client": "phone",
    "states": [{"model": "smollm2-135m", "state": "swapped"}],
    "turns": [{"role": "user", "content": "hello"}],
}
TRACES = [
    {"at": 12, "kind": "boot", "version": "0.1.0"},
    {"at": 4321, "kind": "dispatch", "task": "b7-1", "tokens": 16},
]
APP = {
    "name": "smoke-alarm",
    "description": "One clear instruction.",
    "trigger": {"mqtt": "zigbee2mqtt/+/smoke"},
    "class": "critical",
    "model": "smollm2-135m",
}
RESULTS: dict[str, Any] = {
    "status": STATUS,
    "check": {"sound": True, "why": None},
    "ps": [TASK, EVIL_TASK],
    "show": TASK | {"text": "Hello\nworld"},
    "models": [MODEL],
    "model.verify": {"id": "smollm2-135m", "state": "verified", "size": 98 * MIB},
    "mem": MEM,
    "mem.compact": COMPACTED,
    "sessions": [SESSION],
    "session.show": SESSION_DETAIL,
    "session.park": SESSION_DETAIL,
    "session.rm": {"session": "holiday", "client": "phone", "state": "removed"},
    "apps": [APP],
    "app.show": {"spec": {"class": "critical", "prompt": "Smoke!\nWhat now?"}, "stats": {"runs": 3}},
    "config.show": {"name": "kitchen", "site": "home", "models": [{"name": "smollm2-135m"}]},
    "reload": {"applied": ["models"], "waiting": ["smollm2-135m"], "restart": []},
    "dmesg": {},
    "model.pull": {"id": "m", "sha256": "0" * 64, "size": 98 * MIB},
}
CHANGES = ("kill", "renice", "suspend", "resume")
EVENTS: dict[str, list[dict[str, Any]]] = {
    "dmesg": [{"trace": trace} for trace in TRACES],
    "model.pull": [
        *({"progress": {"stage": "download", "done": done, "total": 98 * MIB}} for done in (0, 49 * MIB, 98 * MIB)),
        {"progress": {"stage": "verify", "done": 0, "total": None}},
    ],
    "model.load": [{"progress": {"stage": "loading", "fraction": part / 4}} for part in range(4)],
}
WORDS = ["Hel", "lo, ", "wörld", "."]


def reply(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    return {"id": "r1", "task": "b7-1", "status": "ok", "output": {"text": text, "finish_reason": finish_reason}}


class ScriptedNode:
    """Keeps the calls; a `submit` or `wait` is answered as its text or task says."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled = threading.Event()
        self.results = dict(RESULTS)

    def handle(self, call: Call) -> None:
        self.calls.append(call)
        for event in EVENTS.get(call.name, []):
            call.event(event)
        if call.name == "submit":
            self._submit(call)
        elif call.name == "wait":
            self._answer(call, str(call.args["task"]))
        elif call.name in CHANGES:
            call.result({"task": call.args["task"], "state": call.name})
        elif isinstance(outcome := self.results.get(call.name), LLMasOSError):
            call.error(outcome)
        elif outcome is not None:
            call.result(outcome)
        else:
            call.result({"id": call.args.get("model") or call.args["name"], "state": call.name})

    def _submit(self, call: Call) -> None:
        if call.args["detach"]:
            call.result({"task": "b7-1"})
            return
        call.event({"accepted": {"task": "b7-1", "position": 2, "eta_ms": 10}})
        body: Any = call.args["body"]
        self._answer(call, body["input"] if "input" in body else body["messages"][0]["content"])

    def _answer(self, call: Call, text: str) -> None:
        if text in BY_CODE:
            call.error(BY_CODE[text]("it went wrong", details={"needed": 2}, retry_after_ms=1500))
        elif text == "hang":
            call.on_cancel = self.cancelled.set
            call.event({"delta": "Once", "attempt": 1})
        elif text == "crash":
            call.event({"delta": "Half an", "attempt": 1})
            call.event({"delta": "Whole ", "attempt": 2})
            call.event({"delta": "answer", "attempt": 2})
            call.result(reply("Whole answer"))
        elif text == "evil":
            call.event({"delta": "a\x1b]0;owned\x07b\x9b31m\r\u202ec\td\n", "attempt": 1})
            call.result(reply("a\x1b]0;owned\x07b\x9b31m\r\u202ec\td\n"))
        elif text == "silent":
            call.result(reply("All at once", "length"))
        elif text == "flood":
            for _ in range(20_000):
                call.event({"delta": "line after line\n", "attempt": 1})
            call.on_cancel = self.cancelled.set
        elif text == "echo" or call.args.get("op") == "run":
            call.result(reply(text))
        else:
            for word in WORDS:
                call.event({"delta": word, "attempt": 1})
            call.result(reply("".join(WORDS)))
