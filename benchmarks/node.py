"""A node of a benchmark's own: a daemon in folders of its own, started, asked, and stopped again."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from llmasos_edge.api.client import Client
from llmasos_edge.errors import Unreachable

ROOT: Final = Path(__file__).resolve().parent.parent
STATE: Final = ROOT / ".state" / "bench"  # on the disk of the clone: the journal's syncs are real ones
MODEL: Final = "smollm2-135m"
MODEL_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
READY_S: Final = 120.0
STOP_S: Final = 20.0
SPEC: Final = """\
apiVersion: llmasos/v1
kind: Node
metadata: {{name: bench, site: bench}}
spec:
  memory: {{budget: 1GiB, arena: 64MiB}}
  mqtt: {{managed: true, port: 0}}
  models: [{{name: {model}, context: 4096, sequences: 16, pin: {pin}}}]
"""


def models_folder() -> Path:
    """Where model files are: $LLMASOS_MODELS, which `./run bench` sets."""
    return Path(os.environ.get("LLMASOS_MODELS", ROOT / ".state" / "models"))


def model_file() -> Path:
    """The default model's file; the benchmarks end without it."""
    path = models_folder() / MODEL_FILE
    if not path.is_file():
        sys.exit(f"benchmarks: {path} is missing: run `./run setup`, or set LLMASOS_MODELS to its folder")
    return path


class BenchNode:
    """A context: the daemon runs inside it. `command`: the module that is the daemon; `loaded`: with its model; `spec`:
    its node file, where `{model}`, `{pin}` and `{state}`, the node's own folder, are filled in.

    `config` is that file, which a benchmark may write anew and have reloaded. `wrapper`: words before the command.
    """

    def __init__(self, *command: str, loaded: bool = True, spec: str = SPEC, wrapper: tuple[str, ...] = ()) -> None:
        model_file()
        self._loaded, self._spec = loaded, spec
        self._command = [*wrapper, sys.executable, "-m", *(command or ("llmasos_edge.daemon",))]

    def __enter__(self) -> Self:
        STATE.mkdir(parents=True, exist_ok=True)
        self.state = Path(tempfile.mkdtemp(prefix="node-", dir=STATE))
        self._runtime = Path(tempfile.mkdtemp(prefix="llmasos-bench-"))  # a socket's path must be short (unix(7))
        self.config = self.state / "node.yaml"
        self.config.write_text(self._spec.format(model=MODEL, pin=str(self._loaded).lower(), state=self.state))
        places = ["--config", str(self.config), "--state", str(self.state / "state"), "--runtime", str(self._runtime)]
        with (self.state / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*self._command, *places],
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd=ROOT,
                env=os.environ | {"LLMASOS_MODELS": str(models_folder())},
            )
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def socket(self) -> Path:
        return self._runtime / "control.sock"

    def client(self) -> Client:
        return Client(self.socket)

    def call(self, name: str, /, **args: object) -> Any:
        with self.client() as client:
            return client.call(name, **args)

    def _wait(self) -> None:
        """Until it is ready and its broker connected."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with suppress(Unreachable):
                status = self.call("status")
                if status["ready"] and status["broker"]["connected"]:
                    return
            time.sleep(0.05)
        sys.exit(f"benchmarks: the node is not ready; its log:\n{(self.state / 'log').read_text()[-2000:]}")

    def _end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self._runtime)
        shutil.rmtree(self.state)
