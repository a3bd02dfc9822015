"""Tests of the node's HTTP side: there may be none, and `status` may be asked before it listens."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmasos_edge.config.node import HttpConfig
from llmasos_edge.daemon.web import Web
from llmasos_edge.ipc.http import HttpServer


def web(config: HttpConfig | None) -> Web:
    parts: Any = SimpleNamespace(door=None, calls=None, security=None, loop=SimpleNamespace(post=lambda call: None))
    parts.config = SimpleNamespace(http=config)
    return Web(parts)


def test_without_http_there_is_nothing() -> None:
    """Every method does nothing."""
    none = web(None)
    none.start()
    assert (none.status(), none.read_keys()) == (None, None)
    none.stop()


def test_its_address_is_told_once_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before: a call on the control socket may come first."""
    keys = tmp_path / "keys"
    keys.write_text("panel 0123456789abcdef\n")
    keys.chmod(0o600)
    site = web(HttpConfig("127.0.0.1", 0, keys))
    start, told = HttpServer.start, []

    def watched(server: HttpServer) -> None:
        told.append(site.status())
        start(server)

    monkeypatch.setattr(HttpServer, "start", watched)
    site.start()
    status = site.status()
    site.stop()
    assert told == [None]
    assert status is not None
    assert status == {"url": f"http://127.0.0.1:{status['port']}", "port": status["port"], "keys": 1}
