"""The managed broker: a mosquitto of our own on loopback, which ends with the daemon and comes back if it dies."""

import logging
import os
import pwd
import shutil
import socket
import subprocess
import time
from pathlib import Path

from llmasos_edge.errors import ConfigError

HOST = "127.0.0.1"
START_S = 10.0
STOP_S = 5.0
FIRST_DELAY_S = 1.0
MAX_DELAY_S = 30.0
STEADY_S = 60.0  # a broker that ran this long starts again with the first delay
PLACES = "/usr/local/sbin:/usr/sbin:/sbin"  # where Debian has it, and a user's PATH does not

CONFIGURATION = """\
listener {port} {host}
allow_anonymous true
user {user}
persistence true
persistence_location {folder}/
autosave_interval {autosave_s}
persistent_client_expiration 7d
max_packet_size 2097152
max_inflight_messages 20
max_queued_messages 32768
max_queued_bytes 16777216
set_tcp_nodelay true
connection_messages false
log_dest stderr
log_type error
log_type warning
"""

log = logging.getLogger(__name__)


class ManagedBroker:
    """A mosquitto that is our child.

    `start`, `poll` and `stop` are called on one and the same thread, which must live as long as the daemon: the
    kernel kills the child when the thread that spawned it ends (prctl(2), PR_SET_PDEATHSIG).
    """

    def __init__(self, folder: Path, port: int = 0, *, autosave_s: int = 60) -> None:
        """`folder` is the broker's own, made if missing; port 0 is any free one, chosen by start()."""
        self._folder = folder
        self._wanted_port = port
        self._autosave_s = autosave_s
        self._port = port
        self._child: subprocess.Popen[bytes] | None = None
        self._delay_s = FIRST_DELAY_S
        self._started_at = 0.0
        self._retry_at: float | None = None

    @property
    def port(self) -> int:
        """The port it listens on; 0 before start() if any free one was asked for."""
        return self._port

    @property
    def pid(self) -> int | None:
        """The process id of the running broker."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def start(self) -> None:
        """Start it, and return once it takes connections; ConfigError says what is missing or in the way."""
        program = _find("mosquitto", "apt-get install mosquitto")
        _find("setpriv", "apt-get install util-linux")
        self._port = _free_port(self._wanted_port)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write_configuration()
        self._log_path.unlink(missing_ok=True)
        self._program = program
        self._spawn()
        self._wait_until_it_answers()

    def poll(self) -> bool:
        """Call this every second: starts a dead broker again, with growing delays; whether it did so now."""
        if self._child is None or self._child.poll() is None:
            return False
        now = time.monotonic()
        if self._retry_at is None:
            if now - self._started_at > STEADY_S:
                self._delay_s = FIRST_DELAY_S
            self._retry_at = now + self._delay_s
            log.error("mosquitto ended (%s); starting it again in %.0f s", self._child.returncode, self._delay_s)
            self._delay_s = min(2 * self._delay_s, MAX_DELAY_S)
        if now < self._retry_at:
            return False
        self._spawn()
        return True

    def stop(self) -> None:
        """End it: asked first, then killed."""
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    @property
    def _log_path(self) -> Path:
        return self._folder / "mosquitto.log"

    @property
    def _configuration_path(self) -> Path:
        return self._folder / "mosquitto.conf"

    def _write_configuration(self) -> None:
        # Started by root it would become the user `mosquitto`, who can't read this folder.
        user = pwd.getpwuid(os.getuid()).pw_name
        self._configuration_path.write_text(
            CONFIGURATION.format(
                port=self._port, host=HOST, user=user, folder=self._folder.resolve(), autosave_s=self._autosave_s
            )
        )

    def _spawn(self) -> None:
        """Start the child in a session of its own, so that Ctrl-C reaches the daemon alone."""
        with self._log_path.open("ab") as output:
            self._child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", self._program, "-c", str(self._configuration_path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._started_at = time.monotonic()
        self._retry_at = None

    def _wait_until_it_answers(self) -> None:
        while time.monotonic() < self._started_at + START_S:
            if self.pid is None:
                break
            try:
                socket.create_connection((HOST, self._port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        self.stop()
        said = self._log_path.read_text(errors="replace").strip()[-500:]
        raise ConfigError(f"mqtt: mosquitto does not come up on port {self._port}: {said or 'it says nothing'}")


def _find(program: str, remedy: str) -> str:
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{PLACES}")
    if found is None:
        raise ConfigError(f"mqtt.managed: {program} is not installed: {remedy}")
    return found


def _free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, any free port for 0; ConfigError if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError as error:
            raise ConfigError(
                f"mqtt.port: port {wanted} is taken on {HOST} ({error.strerror}): choose another, or 0 for any free one"
            ) from None
        return int(probe.getsockname()[1])
