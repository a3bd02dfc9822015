"""The talk with the service manager: ready, alive, stopping, and what the node is doing (sd_notify(3)).

Nothing here blocks or raises: a service manager that does not listen must not stop a node.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

SOCKET: Final = "NOTIFY_SOCKET"


class ServiceManager:
    """Sends states to the datagram socket at `address` ("@" begins an abstract one); without an address, to nobody."""

    def __init__(self, address: str | None) -> None:
        self._address = address

    def ready(self) -> None:
        self._send("READY=1")

    def alive(self) -> None:
        """To be called from the loop whose hanging should restart the node, every `watchdog_interval_s`."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text.splitlines()[0] if text else ''}")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out, suppress(OSError):
            out.setblocking(False)
            out.sendto(state.encode(), address)


def service_manager(environment: Mapping[str, str]) -> ServiceManager:
    return ServiceManager(environment.get(SOCKET))


def watchdog_interval_s(environment: Mapping[str, str]) -> float | None:
    """How often to call `alive`: half of WATCHDOG_USEC; None for one not watched (sd_watchdog_enabled(3))."""
    period = environment.get("WATCHDOG_USEC", "")
    watched = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(period) / 2e6 if watched and period.isdecimal() and int(period) > 0 else None
