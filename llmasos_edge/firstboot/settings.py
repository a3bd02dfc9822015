"""What first boot writes: an appliance as the files of /etc, each with its mode, and its owner's group."""

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from llmasos_edge.firstboot.appliance import NODE_USER, Appliance, Client, Wifi, Wired

OWNER: Final = "owner"  # the client that is made where llmasos.yaml names none
PUBLIC, GROUP_ONLY, PRIVATE = 0o644, 0o640, 0o600
READABLE: Final = ("status", "info", "models", "metrics", "event/#")


@dataclass(frozen=True, slots=True)
class File:
    """A file to write; `path` is below the root, `text` None: it must not be there."""

    path: str
    text: str | None
    mode: int = PUBLIC
    group: str = "root"


def new_password() -> str:
    return secrets.token_urlsafe(15)


def machine_files(appliance: Appliance) -> Iterator[File]:
    """The host's name, its networks, and who may log in."""
    yield File("etc/hostname", appliance.hostname + "\n")
    yield File("etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {appliance.hostname}\n")
    yield File("etc/systemd/network/10-wired.network", _wired(appliance.wired) if appliance.wired else None)
    radio = _wifi(appliance.wifi) if appliance.wifi else None
    yield File("etc/wpa_supplicant/wpa_supplicant-wlan0.conf", radio, PRIVATE)
    keys = "".join(f"{key}\n" for key in appliance.ssh_keys)
    yield File("etc/ssh/authorized_keys.d/admin", keys or None)


def broker_files(clients: Iterable[Client], topics: Iterable[str], node_password: str) -> Iterator[File]:
    """Who may connect to the broker and what for. The passwords are as they are: the next thing is to hash them."""
    everyone = [Client(NODE_USER, node_password), *clients]
    yield File("etc/llmasos/mqtt.password", node_password + "\n", GROUP_ONLY, "llmasos")
    lines = "".join(f"{it.name}:{it.password}\n" for it in everyone)
    yield File("etc/mosquitto/passwd", lines, GROUP_ONLY, "mosquitto")
    yield File("etc/mosquitto/acl", access_list([it.name for it in clients], topics), GROUP_ONLY, "mosquitto")


def access_list(names: Iterable[str], topics: Iterable[str]) -> str:
    """mosquitto's acl_file: the node sees all; clients speak and hear under their own names, and on the open topics."""
    allowed = [f"topic read llmasos/v1/+/+/{it}" for it in READABLE] + [f"topic readwrite {it}" for it in topics]
    blocks = [[f"user {NODE_USER}", "topic readwrite #"], *([f"user {name}", *allowed] for name in names)]
    own = ["pattern write llmasos/v1/+/+/req/%u/#", "pattern read llmasos/v1/+/+/res/%u/#"]
    return "\n\n".join("\n".join(block) for block in [*blocks, own]) + "\n"


def access_note(hostname: str, client: Client) -> str:
    """LLMASOS-ACCESS.txt."""
    return f"""\
How to reach this machine. Written once, at its first boot. Keep what it says, and delete the file.

MQTT broker: {hostname}.local, port 1883
User name:   {client.name}
Password:    {client.password}

Ask it:      topic llmasos/v1/home/{hostname}/req/{client.name}/chat
             message {{"id": "1", "messages": [{{"role": "user", "content": "Hello"}}]}}
The answer:  topic llmasos/v1/home/{hostname}/res/{client.name}/1
"""


def _wired(wired: Wired) -> str:
    lines = ["[Match]", "Type=ether", "Kind=!*", "", "[Network]", f"Address={wired.address}"]
    lines += [f"Gateway={wired.gateway}"] if wired.gateway else []
    return "\n".join([*lines, *(f"DNS={it}" for it in wired.dns), "MulticastDNS=yes", ""])


def _wifi(wifi: Wifi) -> str:
    """The key instead of the password, and the name in hexadecimal: nothing in it needs quotes."""
    key = hashlib.pbkdf2_hmac("sha1", wifi.password.encode(), wifi.ssid.encode(), 4096, 32).hex()
    network = f"network={{\n\tssid={wifi.ssid.encode().hex()}\n\tpsk={key}\n}}\n"
    return f"ctrl_interface=/run/wpa_supplicant\ncountry={wifi.country}\n{network}"
