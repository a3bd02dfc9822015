"""The network addresses of a node file: a broker's URL, and the address that HTTP listens on."""

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmasos_edge.config import values

_SCHEMES = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    url: str
    host: str
    port: int
    tls: bool


def broker_url(value: object) -> BrokerUrl:
    """`mqtt://HOST[:PORT]` (1883) or `mqtts://HOST[:PORT]` (TLS, 8883). ValueError otherwise."""
    given = values.text(value)
    try:
        parts = urlsplit(given)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f'"{given}" is no address: {error}') from None
    if parts.scheme not in _SCHEMES or not host:
        raise ValueError(f'"{given}" is no broker address: write mqtt://HOST:PORT, or mqtts://HOST:PORT for TLS')
    if "@" in parts.netloc:
        raise ValueError("no user or password in the address: use `user` and `password_file`")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f'"{given}": nothing may follow the port')
    return BrokerUrl(given, host, port or _SCHEMES[parts.scheme], parts.scheme == "mqtts")


def listen_address(value: object) -> tuple[str, int]:
    """`HOST:PORT`, an IPv6 host in brackets; port 0 is any free one. ValueError otherwise."""
    given = values.text(value)
    try:
        parts = urlsplit(f"//{given}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None or parts.netloc != given or "@" in given:
        raise ValueError(f'"{given}" is no address to listen on: write HOST:PORT, for example 127.0.0.1:8000')
    return host, port


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach it; a name other than localhost may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
