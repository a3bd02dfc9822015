"""The commands about models: models, and model pull, add, rm, verify, selftest, load, drop, pin, unpin."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmasos_edge.cli import render
from llmasos_edge.cli.node import call, connect, examples, json_option, put
from llmasos_edge.cli.progress import Progress
from llmasos_edge.errors import EngineFailed, StoreError, Unreachable

if TYPE_CHECKING:
    from llmasos_edge.services.store import ModelStore

DEFAULT_STATE = "/var/lib/llmasos"


@click.command(epilog=examples("llmasos models"))
@json_option
def models(as_json: bool) -> None:
    """List the models that the node has or knows where to get."""
    put(call("models"), as_json, render.models)


@click.group()
def model() -> None:
    """Get, check, load or remove a model."""


@model.command(epilog=examples("llmasos model pull smollm2-135m"))
@click.argument("name", metavar="MODEL")
@json_option
def pull(name: str, as_json: bool) -> None:
    """Download a model of the catalogue, and check its hash. An interrupted download is resumed."""
    put(_watch("model.pull", name), as_json, _say_model)


@model.command(epilog=examples("llmasos model add ~/qwen.gguf qwen"))
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False, resolve_path=True))
@click.argument("name", metavar="NAME")
@json_option
def add(path: Path, name: str, as_json: bool) -> None:
    """Take a GGUF FILE of this machine into the store, as NAME."""
    put(call("model.add", path=str(path), name=name), as_json, _say_model)


@model.command(epilog=examples("llmasos model rm qwen"))
@click.argument("name", metavar="MODEL")
@json_option
def rm(name: str, as_json: bool) -> None:
    """Remove a model's file from the store."""
    put(call("model.rm", model=name), as_json, _say_model)


@model.command(epilog=examples("llmasos model verify smollm2-135m", "llmasos model verify qwen --state .state/demo"))
@click.argument("name", metavar="MODEL")
@click.option("--state", type=click.Path(path_type=Path, exists=True), help="Read this state folder, and ask no node.")
@json_option
def verify(name: str, state: Path | None, as_json: bool) -> None:
    """Read a model's file again, and check its hash. Without a node, the state folder is read directly."""
    if state is not None:
        result = _verify_stored(state, name)
    else:
        try:
            result = call("model.verify", model=name)
        except Unreachable:
            folder = Path(os.environ.get("STATE_DIRECTORY") or DEFAULT_STATE)
            if not folder.is_dir():
                raise
            result = _verify_stored(folder, name)
    put(result, as_json, _say_model)


@model.command(epilog=examples("llmasos model load smollm2-135m"))
@click.argument("name", metavar="MODEL")
@json_option
def load(name: str, as_json: bool) -> None:
    """Load a model into memory now, not when its first task comes."""
    put(_watch("model.load", name), as_json, _say_model)


@model.command(epilog=examples("llmasos model drop smollm2-135m"))
@click.argument("name", metavar="MODEL")
@json_option
def drop(name: str, as_json: bool) -> None:
    """Give a model's memory back; it is loaded again when needed."""
    put(call("model.drop", model=name), as_json, _say_model)


@model.command(epilog=examples("llmasos model pin smollm2-135m"))
@click.argument("name", metavar="MODEL")
@json_option
def pin(name: str, as_json: bool) -> None:
    """Load a model and keep it loaded, until the node restarts or reloads its node file.

    `pin: true` in the node file is for good.
    """
    put(call("model.pin", model=name), as_json, _say_model)


@model.command(epilog=examples("llmasos model unpin smollm2-135m"))
@click.argument("name", metavar="MODEL")
@json_option
def unpin(name: str, as_json: bool) -> None:
    """Let a pinned model be dropped for others, until the node restarts or reloads its node file."""
    put(call("model.unpin", model=name), as_json, _say_model)


@model.command(epilog=examples("llmasos model selftest smollm2-135m --state .state/demo"))
@click.argument("name", metavar="MODEL")
@click.option("--state", type=click.Path(path_type=Path, exists=True), help="The node's state folder.")
@click.option("--kv", type=click.Choice(["q8_0", "f16"]), default="q8_0", help="The type of the KV cells.")
@json_option
def selftest(name: str, state: Path | None, kv: str, as_json: bool) -> None:
    """Whether parking and batching change a model's answers on this processor, bit for bit.

    Reads and writes the state folder itself: run it as the node's user. The result stays with the model.
    """
    store = _store(state or Path(os.environ.get("STATE_DIRECTORY") or DEFAULT_STATE))
    command = [sys.executable, "-m", "llmasos_edge.engine.selftest", str(store.verify(name).path), kv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineFailed(f"the self-test of {name} failed ({done.returncode}): {done.stderr.strip()[-300:]}")
    stored = store.note_selftest(name, json.loads(done.stdout))
    put({"id": stored.name, "state": "tested", "selftest": stored.selftest}, as_json, _say_selftest)


def _watch(name: str, model: str) -> Any:
    """The result of a call that tells of its progress."""
    with connect() as client, Progress(model) as progress:
        stream = client.stream(name, model=model)
        for event in stream:
            progress.show(event["progress"])
        return stream.result


def _verify_stored(state: Path, name: str) -> dict[str, Any]:
    stored = _store(state).verify(name)
    return {"id": stored.name, "state": "verified", "sha256": stored.sha256, "size": stored.size}


def _store(state: Path) -> "ModelStore":
    from llmasos_edge.services.store import ModelStore  # noqa: PLC0415 - only a node's absence needs it

    root = state / "models"
    if not root.is_dir():  # ModelStore would make it
        raise StoreError(f"{root}: no model store there; --state names the node's state folder")
    return ModelStore(root, None)


def _say_selftest(result: dict[str, Any]) -> None:
    found = result["selftest"]
    differ = f"of {found['rows']} rows of logits, {found['parked']} differ after a park, {found['batched']} in a batch"
    render.line(f"{result['id']} deterministic: {found['deterministic']} ({differ}; {found['library']}, {found['kv']})")


def _say_model(result: dict[str, Any]) -> None:
    size = f" {render.size(result['size'])}" if result.get("size") is not None else ""
    pinned = {True: ", pinned", False: ", not pinned", None: ""}[result.get("pinned")]
    render.line(f"{result['id']} {result.get('state', 'ok')}{size}{pinned}")
