"""Who has the card: its access file and an SSH key, and what he checks, in a table."""

import contextlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from image.emulator import LOOPBACK, Card, Emulator
from image.mqtt import Refused

UP_S: Final = 300.0
POLL_S: Final = 1.0

T = TypeVar("T")


class Failed(Exception):
    """A check that does not hold: what was wanted, and what was found."""


def require(holds: object, message: str) -> None:
    if not holds:
        raise Failed(message)


@dataclass(slots=True)
class Report:
    """The table: what was checked on which machine, how long it took, and what was seen."""

    machine: str = ""
    rows: list[tuple[str, str, float, str]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def figure(self, holds: bool, message: str) -> None:
        """A figure that is wanted: a miss fails the test, once everything else has been looked at."""
        if not holds:
            self.missed.append(f"{self.machine}: {message}")

    @contextlib.contextmanager
    def check(self, name: str) -> Iterator[list[str]]:
        """Times what is done inside; strings put into the list are shown beside it."""
        seen: list[str] = []
        started = time.monotonic()
        yield seen
        self.rows.append((self.machine, name, time.monotonic() - started, ", ".join(seen)))
        print(f"    {self.rows[-1][2]:6.1f} s  {name}: {self.rows[-1][3] or 'done'}", flush=True)

    def table(self) -> str:
        lines = ["| machine | check | s | seen |", "|---|---|---|---|"]
        return "\n".join([*lines, *(f"| {m} | {n} | {s:.1f} | {seen} |" for m, n, s, seen in self.rows)])


class Owner:
    """Who has the card: its access file, and an SSH key that llmasos.yaml names."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self._key = card.folder / "id_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key], check=True)

    def settings(self, hostname: str) -> str:
        """llmasos.yaml with our key."""
        head = f"apiVersion: llmasos/v1\nkind: Appliance\nspec:\n  hostname: {hostname}\n"
        return f"{head}  ssh_keys:\n    - {self._key.with_suffix('.pub').read_text().strip()}\n"

    def access(self, machine: Emulator) -> tuple[str, str]:
        """User name and password out of LLMASOS-ACCESS.txt, as soon as it is there."""
        text = wait(lambda: self.card.read("LLMASOS-ACCESS.txt"), machine, "LLMASOS-ACCESS.txt").decode()
        user, password = (re.search(rf"{it}: +(\S+)", text) for it in ("User name", "Password"))
        if user is None or password is None:
            raise Failed(f"LLMASOS-ACCESS.txt names no user: {text}")
        return user[1], password[1]

    def run(self, machine: Emulator, command: str, timeout_s: float = 120.0) -> str:
        """A command as root; what it printed."""
        options = ["-i", str(self._key), "-p", str(machine.ssh_port), "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"]
        options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        done = subprocess.run(
            ["ssh", *options, f"admin@{LOOPBACK}", "sudo", "sh", "-s"],
            input=command, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Failed(f"{command}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
        return done.stdout.strip()


def wait(probe: Callable[[], T | None], machine: Emulator, what: str, timeout_s: float = UP_S) -> T:
    """What the probe finds; errors of a machine that is not up yet are no answer."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and machine.alive:
        with contextlib.suppress(OSError, Refused, Failed, subprocess.TimeoutExpired):
            if (found := probe()) is not None:
                return found
        time.sleep(POLL_S)
    raise Failed(f"{what}: not within {timeout_s:.0f} s")
