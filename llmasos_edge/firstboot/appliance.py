"""llmasos.yaml of the boot partition: what its owner wants of the machine, read as strictly as a node file."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmasos_edge.config import values
from llmasos_edge.config.section import Section, root
from llmasos_edge.config.yaml_reader import read_yaml

NODE_USER: Final = "llmasos"  # the node's own name at the broker
DEFAULT_TOPICS: Final = ("home/#", "homeassistant/#", "sensors/#", "zigbee2mqtt/#")
_HOSTNAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_COUNTRY: Final = re.compile(r"[A-Z]{2}")
_KEY: Final = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-\S+|sk-\S+) [A-Za-z0-9+/]+=*( .*)?")
_PASSWORD: Final = re.compile(r"[\x20-\x7e]{8,63}")


@dataclass(frozen=True, slots=True)
class Wired:
    """A fixed address; without one the network is asked (DHCP)."""

    address: str
    gateway: str | None = None
    dns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wifi:
    country: str
    ssid: str
    password: str


@dataclass(frozen=True, slots=True)
class Client:
    """A user of the broker."""

    name: str
    password: str


@dataclass(frozen=True, slots=True)
class Appliance:
    hostname: str = "llmasos"
    wired: Wired | None = None
    wifi: Wifi | None = None
    ssh_keys: tuple[str, ...] = ()
    clients: tuple[Client, ...] = ()
    topics: tuple[str, ...] = DEFAULT_TOPICS


def read_appliance(path: Path) -> Appliance:
    """ConfigError names the line and the key of everything that is wrong."""
    document = read_yaml(path)
    with root(document, "Appliance") as top, top.section("spec") as spec:
        hostname = spec.take("hostname", _hostname, Appliance().hostname)
        with spec.section("network") as network:
            wired = _wired(network) if "wired" in network else None
            wifi = _wifi(network) if "wifi" in network else None
        keys = spec.items("ssh_keys", _key)
        with spec.section("mqtt") as mqtt:
            clients = tuple(_client(it) for it in mqtt.sections("clients"))
            topics = mqtt.items("topics", _topic) if "topics" in mqtt else DEFAULT_TOPICS
            _refuse_repeats(mqtt, clients)
    document.finish()
    return Appliance(hostname, wired, wifi, keys, clients, topics)


def _refuse_repeats(mqtt: Section, clients: tuple[Client, ...]) -> None:
    names = [it.name for it in clients]
    for index, name in enumerate(names):
        if name and name in names[:index]:
            mqtt.document.report((*mqtt.where, "clients", index), f'"{name}" is there twice')


def _wired(network: Section) -> Wired:
    with network.section("wired") as wired:
        address = wired.need("address", _interface, "")
        gateway: str | None = wired.take("gateway", _address, None)
        return Wired(address, gateway, wired.items("dns", _address))


def _wifi(network: Section) -> Wifi:
    with network.section("wifi") as wifi:
        return Wifi(
            wifi.need("country", _country, ""), wifi.need("ssid", _ssid, ""), wifi.need("password", _password, "")
        )


def _client(section: Section) -> Client:
    with section as client:
        return Client(client.need("name", _client_name, ""), client.need("password", _password, ""))


def _hostname(value: object) -> str:
    if not _HOSTNAME.fullmatch(values.text(value)):
        raise ValueError(f"{values.described(value)} is no host name: 1 to 63 of a-z, 0-9 and -, no - at its ends")
    return str(value)


def _interface(value: object) -> str:
    try:
        given = ipaddress.ip_interface(values.text(value))
    except ValueError:
        given = None
    if given is None or "/" not in str(value):
        raise ValueError(f"{values.described(value)} is no address with its network: write it like 192.168.1.20/24")
    return str(given)


def _address(value: object) -> str:
    try:
        return str(ipaddress.ip_address(values.text(value)))
    except ValueError:
        raise ValueError(f"{values.described(value)} is no address: write it like 192.168.1.1") from None


def _country(value: object) -> str:
    if not _COUNTRY.fullmatch(values.text(value)):
        raise ValueError(f"{values.described(value)} is no country: two capital letters, such as GB")
    return str(value)


def _ssid(value: object) -> str:
    if not 1 <= len(values.text(value).encode()) <= 32:
        raise ValueError("a network's name has 32 bytes at most")
    return str(value)


def _password(value: object) -> str:
    if not _PASSWORD.fullmatch(values.text(value)):
        raise ValueError("a password has 8 to 63 letters, digits and signs, without umlauts and the like")
    return str(value)


def _key(value: object) -> str:
    if not _KEY.fullmatch(values.text(value).strip()):
        raise ValueError("this is no SSH public key: copy the whole line of a file such as id_ed25519.pub")
    return str(value).strip()


def _client_name(value: object) -> str:
    if values.name(value) == NODE_USER:
        raise ValueError(f'"{NODE_USER}" is the node\'s own name at the broker: choose another')
    return values.name(value)


def _topic(value: object) -> str:
    levels = values.text(value).split("/")
    misplaced = "#" in levels[:-1] or any(set(it) & set("+#\0\n") and it not in ("+", "#") for it in levels)
    if misplaced or levels[0] in ("+", "#", "llmasos") or levels[0].startswith("$"):
        raise ValueError(f"{values.described(value)} can't be opened to clients: write it like home/# (not llmasos/)")
    return str(value)
