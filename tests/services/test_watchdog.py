"""Tests of the talk with the service manager, over real datagram sockets."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos_edge.services.watchdog import service_manager, watchdog_interval_s


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket such as systemd's, and the NOTIFY_SOCKET that names it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"\0llmasos-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(name)
        inbox.settimeout(5)
        yield inbox, name.replace("\0", "@")


def test_states(listening: tuple[socket.socket, str]) -> None:
    """Every state arrives as one datagram in the service manager's own words."""
    inbox, address = listening
    manager = service_manager({"NOTIFY_SOCKET": address})
    manager.ready()
    manager.alive()
    manager.status("2 tasks\nand a second line")
    manager.stopping()
    assert [inbox.recv(100) for _ in range(4)] == [b"READY=1", b"WATCHDOG=1", b"STATUS=2 tasks", b"STOPPING=1"]


def test_a_full_socket_does_not_block(listening: tuple[socket.socket, str]) -> None:
    """A service manager that does not read never holds the node up."""
    manager = service_manager({"NOTIFY_SOCKET": listening[1]})
    for _ in range(2000):
        manager.alive()


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nowhere/notify"}], ids=["none", "gone"])
def test_without_a_service_manager(environment: dict[str, str]) -> None:
    """A node that nobody started as a service says nothing, and goes on."""
    service_manager(environment).ready()


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
    ids=["unset", "set", "mine", "another's", "zero", "words"],
)
def test_interval(environment: dict[str, str], interval_s: float | None) -> None:
    """The node reports twice in each period, and only when it is the one that is watched."""
    assert watchdog_interval_s(environment) == interval_s
