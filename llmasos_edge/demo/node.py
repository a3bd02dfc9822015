"""The demo's node: a llmasosd with a state of its own in .state/demo, which never outlives the demo."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from llmasos_edge.api.client import Client
from llmasos_edge.daemon.state_lock import StateLock
from llmasos_edge.demo.failure import DemoFailed
from llmasos_edge.errors import Unreachable
from llmasos_edge.resources import resource

HOME: Final = Path(".state/demo")  # relative: a Unix socket's path has room for 107 bytes (unix(7))
READY_S: Final = 600.0  # a model that is missing is fetched first
POLL_S: Final = 0.1
SAY_AGAIN_S: Final = 5.0
CALL_S: Final = 10.0
STOP_S: Final = 20.0
LOG_LINES: Final = 8
STAGES: Final = {"missing": "fetching", "unloaded": "about to load"}


class DemoNode:
    """Used with `with`: made and started, and on the way out stopped and waited for, whatever happened."""

    def __init__(self) -> None:
        """Raises ConfigError while another demo runs in this folder."""
        self._lock = StateLock(HOME)
        self.socket: Final = HOME / "run" / "control.sock"
        self.log: Final = HOME / "llmasosd.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> tuple[str, ...]:
        """The daemon's command line."""
        config = resource("configs") / "demo.yaml"
        here = Path.cwd()
        shown = config.relative_to(here) if config.is_relative_to(here) else config
        return ("llmasosd", "--config", str(shown), "--state", str(HOME / "state"), "--runtime", str(HOME / "run"))

    def start(self) -> None:
        """Begin with an empty state, so that nothing of an earlier demo is gone on with."""
        for folder in ("state", "run"):
            shutil.rmtree(HOME / folder, ignore_errors=True)
        # Killed with the demo if that is killed; in a session of its own, so that Ctrl-C reaches the demo alone.
        guard = ("setpriv", "--pdeathsig", "TERM")
        daemon = (sys.executable, "-m", "llmasos_edge.daemon", *self.command[1:])
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*guard, *daemon], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait_until_ready(self, say: Callable[[str], None]) -> dict[str, Any]:
        """The node's status, once it is ready. `say` hears how far it is: at each change, and now and then."""
        started = time.monotonic()
        said, said_at = "", started
        while (now := time.monotonic()) < started + READY_S:
            self.check()
            status = self._status()
            if status is not None and status["ready"] and status["broker"]["connected"]:
                return status
            stage = _stage(status)
            if stage != said or now - said_at >= SAY_AGAIN_S:
                say(f"{now - started:5.1f} s  {stage}")
                said, said_at = stage, now
            time.sleep(POLL_S)
        raise DemoFailed(f"the node is not ready after {READY_S:.0f} s. {self._last_words()}")

    def check(self) -> None:
        """Raises DemoFailed if the daemon has ended, with its last words."""
        if self._process is not None and self._process.poll() is not None:
            raise DemoFailed(f"the node ended (exit status {self._process.returncode}). {self._last_words()}")

    def call(self, name: str, **args: object) -> Any:
        """One call on the control socket."""
        with Client(self.socket, CALL_S) as client:
            return client.call(name, **args)

    def stop(self) -> None:
        """SIGTERM, and wait; its broker and its workers end with it."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._lock.release()

    def _status(self) -> dict[str, Any] | None:
        try:
            status: dict[str, Any] = self.call("status")
        except Unreachable:
            return None
        return status

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "\n  ".join([f"The end of {self.log}:", *lines])


def _stage(status: dict[str, Any] | None) -> str:
    if status is None or not status["broker"]["port"]:
        return "the daemon starts"
    models = ", ".join(f"{STAGES.get(model['state'], model['state'])} {model['id']}" for model in status["models"])
    return f"the broker listens on port {status['broker']['port']}; {models}"
