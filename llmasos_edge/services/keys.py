"""The keys of HTTP clients: a file that names whose each is."""

import os
import re
import stat
from collections.abc import Mapping
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Final

from llmasos_edge.errors import ConfigError
from llmasos_edge.kernel.units import ClientId
from llmasos_edge.services.security import RESERVED

NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
KEY: Final = re.compile(r"[!-~]{16,256}")
HASHED: Final = re.compile(r"sha256:([0-9a-f]{64})")


class Keys:
    """Digests of keys, and their clients; a client may have several, so that a key can be changed without a gap."""

    def __init__(self, clients: Mapping[bytes, ClientId]) -> None:
        self._clients = clients

    def __len__(self) -> int:
        return len(self._clients)

    def client(self, key: str) -> ClientId | None:
        """Whose key it is. Takes the same time whatever it is: all digests are compared, and all to their end."""
        given, found = sha256(key.encode()).digest(), None
        for digest, client in self._clients.items():
            if compare_digest(digest, given):
                found = client
        return found


def read_keys(file: Path, environment: Mapping[str, str]) -> Keys:
    """The file, or the credential of its name that systemd hands over: on each line a name and a key, or `sha256:` and
    the key's hash. Raises ConfigError, which tells the line and never the key.
    """
    handed = Path(environment.get("CREDENTIALS_DIRECTORY", "/nowhere")) / file.name
    source = handed if handed.exists() else file
    try:
        with source.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            lines = opened.read().decode().splitlines()
    except OSError as error:
        raise ConfigError(f"http.keys_file: {source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"http.keys_file: {source}: not a text file") from error
    if mode & (stat.S_IWGRP | stat.S_IRWXO):
        raise ConfigError(f"http.keys_file: {source}: others may use it (mode {mode:04o}): chmod 0640 {source}")
    clients: dict[bytes, ClientId] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            digest, client = _read_line(line, f"http.keys_file: {source}:{number}")
            if digest in clients:
                raise ConfigError(f"http.keys_file: {source}:{number}: this key is there twice")
            clients[digest] = client
    if not clients:
        raise ConfigError(f"http.keys_file: {source}: no key in it: write NAME and KEY on a line")
    return Keys(clients)


def _read_line(line: str, where: str) -> tuple[bytes, ClientId]:
    words = line.split()
    if len(words) != 2 or not NAME.fullmatch(words[0]):
        raise ConfigError(f"{where}: expected a client's name and its key, with a space between")
    name, key = words
    if name in RESERVED:
        raise ConfigError(f"{where}: {name!r} is a name of the node's own: take another")
    if hashed := HASHED.fullmatch(key):
        return bytes.fromhex(hashed[1]), ClientId(name)
    if not KEY.fullmatch(key) or key.startswith("sha256:"):
        raise ConfigError(f"{where}: a key is 16 to 256 ASCII characters (`openssl rand -hex 16` makes one)")
    return sha256(key.encode()).digest(), ClientId(name)
