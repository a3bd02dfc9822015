"""What first boot does, in order. Nothing that goes wrong stops it: it is told on the FAT partition."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from llmasos_edge.config.load import load_node
from llmasos_edge.errors import ConfigError, LLMasOSError
from llmasos_edge.firstboot.appliance import Appliance, Client, read_appliance
from llmasos_edge.firstboot.machine import Machine
from llmasos_edge.firstboot.settings import (
    GROUP_ONLY,
    OWNER,
    File,
    access_note,
    broker_files,
    machine_files,
    new_password,
)
from llmasos_edge.resources import resource

APPLIANCE: Final = "llmasos.yaml"
NODE: Final = "node.yaml"
ACCESS: Final = "LLMASOS-ACCESS.txt"
MISTAKES: Final = "FIRSTBOOT-ERROR.txt"
APPLIED: Final = "applied"  # what the unit's ExecCondition compares with
PASSWORDS: Final = "etc/mosquitto/passwd"

log = logging.getLogger(__name__)


def set_up(machine: Machine, data: Path) -> None:
    """Bring the machine to what the files on its boot partition say. Run again, it changes what they changed."""
    mistakes: list[str] = []
    first = not (machine.state / APPLIED).exists()
    if first:
        _attempt(mistakes, lambda: machine.grow_data(data))
    _attempt(mistakes, machine.make_host_key)
    appliance = _appliance(machine, mistakes)
    notes: dict[str, str] = {}
    if appliance is not None or first:
        appliance = appliance or Appliance()
        machine.write(machine_files(appliance))
        _attempt(mistakes, lambda: machine.take_hostname(appliance.hostname))
        _attempt(mistakes, lambda: notes.update(_open_broker(machine, appliance, first)))
        _write_node(machine, appliance.hostname, mistakes)
    _tell(machine, notes, mistakes)
    _remember(machine)


def _attempt(mistakes: list[str], work: Callable[[], None]) -> None:
    try:
        work()
    except (LLMasOSError, OSError) as error:
        log.error("%s", error)
        mistakes.append(str(error))


def _appliance(machine: Machine, mistakes: list[str]) -> Appliance | None:
    """None where the file has mistakes; without a file, the defaults."""
    path = machine.boot / APPLIANCE
    try:
        return read_appliance(path) if path.exists() else Appliance()
    except ConfigError as error:
        mistakes.append(_readable(error, machine))
        return None


def _open_broker(machine: Machine, appliance: Appliance, first: bool) -> dict[str, str]:
    """The broker's users: those of the file, or those that are there, or at first a new one, which is told once."""
    if not appliance.clients and not first:
        return {}
    made = Client(OWNER, new_password())
    clients = appliance.clients or (made,)
    files = broker_files(clients, appliance.topics, new_password())
    machine.write(replace(it, path=f"{it.path}.new") if it.path == PASSWORDS else it for it in files)
    machine.hash_passwords(f"{PASSWORDS}.new")
    (machine.root / f"{PASSWORDS}.new").rename(machine.root / PASSWORDS)
    return {} if appliance.clients else {ACCESS: access_note(appliance.hostname, made)}


def _write_node(machine: Machine, hostname: str, mistakes: list[str]) -> None:
    """The owner's node file if there is a good one, else ours with the host's name."""
    own = machine.boot / NODE
    text = (resource("configs") / "appliance.yaml").read_text().replace("name: llmasos\n", f"name: {hostname}\n", 1)
    if own.exists():
        try:
            load_node(own, boards=resource("board"))
            text = own.read_text()
        except ConfigError as error:
            mistakes.append(_readable(error, machine))
    machine.write([File(f"etc/llmasos/{NODE}", text, GROUP_ONLY, "llmasos")])


def _readable(error: ConfigError, machine: Machine) -> str:
    """As the owner sees the card in a reader: without the folder that it is mounted in here."""
    return error.message.replace(f"{machine.boot}/", "")


def _tell(machine: Machine, notes: dict[str, str], mistakes: Iterable[str]) -> None:
    """The notes, and the mistakes, or no mistakes any more, on the FAT partition, with line ends for every editor."""
    said = "\n".join(mistakes)
    if said:
        notes |= {MISTAKES: f"Not all could be done as asked. Mend this, and start the machine again.\n\n{said}\n"}
    stale = not said and (machine.boot / MISTAKES).exists()
    if notes or stale:
        with machine.writable_boot() as boot:
            for name, text in notes.items():
                (boot / name).write_text(text.replace("\n", "\r\n"), newline="")
            if stale:
                (boot / MISTAKES).unlink()


def _remember(machine: Machine) -> None:
    given = [machine.boot / name for name in (APPLIANCE, NODE)]
    machine.state.mkdir(parents=True, exist_ok=True)
    (machine.state / APPLIED).write_bytes(b"".join(it.read_bytes() for it in given if it.exists()))
