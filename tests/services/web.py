"""A small web server for downloads: it knows ranges, and can break off, refuse, or send too much."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server gives, how it misbehaves, and the Range of every request it got."""

    content: bytes
    url: str = ""
    ranges: bool = True
    break_after: int | None = None  # bytes of each answer, while `breaks` are left
    breaks: int = 0
    status: int = 0  # a refusal
    asked: list[str | None] = field(default_factory=list)


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers["Range"]
            site.asked.append(wanted)
            if site.status:
                self.send_error(site.status)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(site.content) - start))
            self.end_headers()
            self.wfile.write(site.content[start:][: self._limit()])

        def _limit(self) -> int | None:
            if site.breaks == 0:
                return None
            site.breaks -= 1
            return site.break_after

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its base class names it
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/model.gguf"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
