"""Tests of the managed mosquitto: it comes up, stays up, and never outlives its daemon."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmasos_edge.errors import ConfigError
from llmasos_edge.ipc.broker import HOST, ManagedBroker

PATIENCE_S = 10.0


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; the test fails if it does not within PATIENCE_S."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ManagedBroker]:
    """A started broker in a folder of its own (with a space in its name, as users have)."""
    broker = ManagedBroker(tmp_path / "state of mine" / "broker")
    broker.start()
    yield broker
    broker.stop()


def test_it_answers_once_started_and_is_gone_once_stopped(broker: ManagedBroker, tmp_path: Path) -> None:
    """start() returns when connections are taken; stop() leaves nothing behind but its folder, closed to others."""
    port, pid = broker.port, broker.pid
    assert pid is not None
    assert answers(port)
    assert (tmp_path / "state of mine" / "broker").stat().st_mode & 0o777 == 0o700
    broker.stop()
    assert broker.pid is None
    assert not answers(port)
    assert not Path(f"/proc/{pid}").exists()
    broker.stop()


def test_it_listens_on_loopback_alone(broker: ManagedBroker) -> None:
    """Nobody outside this machine can reach an anonymous broker."""
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line]
    assert [where for where in listening if where.endswith(f":{broker.port:04X}")] == [f"0100007F:{broker.port:04X}"]


def test_a_dead_broker_is_started_again_on_its_port(broker: ManagedBroker) -> None:
    """poll() notices the death, waits a little, and brings it back where its clients look for it."""
    port, pid = broker.port, broker.pid
    assert pid is not None
    assert not broker.poll()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: broker.pid is None)
    assert not broker.poll()
    eventually(broker.poll)
    assert broker.pid not in (None, pid)
    eventually(lambda: answers(port))
    assert broker.port == port


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    """Two on one port is a configuration error that says which."""
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is taken"):
            ManagedBroker(tmp_path, port).start()


def test_a_missing_mosquitto_is_told_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lacks the package learns its name."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("llmasos_edge.ipc.broker.PLACES", str(tmp_path))
    with pytest.raises(ConfigError, match="apt-get install mosquitto"):
        ManagedBroker(tmp_path).start()


def test_a_broker_that_does_not_come_up_is_quoted(tmp_path: Path) -> None:
    """What mosquitto itself says is part of the error (here, of a state file that is damaged)."""
    (tmp_path / "mosquitto.db").write_bytes(b"not a database")
    with pytest.raises(ConfigError, match="(?s)does not come up.*Couldn't open database"):
        ManagedBroker(tmp_path).start()


def test_it_dies_with_a_daemon_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the daemon gives it no chance to stop its broker, and yet none is left."""
    program = (
        "import sys, time; from pathlib import Path; from llmasos_edge.ipc.broker import ManagedBroker\n"
        "broker = ManagedBroker(Path(sys.argv[1])); broker.start(); print(broker.pid, broker.port, flush=True)\n"
        "time.sleep(60)"
    )
    daemon = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert daemon.stdout is not None
        pid, port = map(int, daemon.stdout.readline().split())
        assert answers(port)
    finally:
        daemon.kill()
        daemon.communicate()
    eventually(lambda: not answers(port))
    eventually(lambda: not Path(f"/proc/{pid}/exe").exists())
