"""The node's HTTP side: its server, its keys, and the calls behind it; loaded only where the node file asks for it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from llmasos_edge.services.keys import Keys, read_keys

if TYPE_CHECKING:
    from llmasos_edge.api.calls import Json
    from llmasos_edge.api.http_server import HttpCalls
    from llmasos_edge.config.node import HttpConfig
    from llmasos_edge.daemon.node import Node
    from llmasos_edge.ipc.http import HttpServer

log = logging.getLogger(__name__)


class Web:
    """Without `http` in the node file there is none, and every method does nothing."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._config = node.config.http
        self._calls: HttpCalls | None = None
        self._server: HttpServer | None = None

    def start(self) -> None:
        """Raises ConfigError: the address is taken, or the keys can't be read."""
        config, node = self._config, self._node
        if config is None:
            return
        from llmasos_edge.api.http_server import HttpCalls, refusal  # noqa: PLC0415 - 2 MB
        from llmasos_edge.ipc.http import HttpServer  # noqa: PLC0415

        self._calls = HttpCalls(node.door, node.calls, node.security, self.read_keys(), node.loop.post)
        server = HttpServer((config.host, config.port), self._calls.handle, refusal)
        server.start()
        self._server = server  # not before: `status` may be asked already
        log.info("http: %s", self._url(config, server))

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()

    def read_keys(self) -> Keys | None:
        """As they are in their file now; None where none are needed. Raises ConfigError."""
        if self._config is None or self._config.keys_file is None:
            return None
        return read_keys(self._config.keys_file, os.environ)

    def use_keys(self, keys: Keys | None) -> None:
        if self._calls is not None:
            self._calls.keys = keys

    def status(self) -> Json | None:
        """What `status` tells of it."""
        config, server, calls = self._config, self._server, self._calls
        if config is None or server is None or calls is None:
            return None
        keys = None if calls.keys is None else len(calls.keys)
        return {"url": self._url(config, server), "port": server.port, "keys": keys}

    def _url(self, config: HttpConfig, server: HttpServer) -> str:
        host = f"[{config.host}]" if ":" in config.host else config.host
        return f"http://{host}:{server.port}"
