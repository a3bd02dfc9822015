"""Requests that the node's own apps make, and how their answers come back to them, through restarts too."""

from collections.abc import Callable, Sequence

import msgspec

from llmasos_edge.api.door import Arrival, Door
from llmasos_edge.api.ticket import Post, Reply
from llmasos_edge.errors import Internal
from llmasos_edge.ipc.messages import Accepted, ChatRequest, decode_request
from llmasos_edge.services.journal import Entry
from llmasos_edge.services.security import Security

OnDone = Callable[[dict[str, object]], None]


class AppWaiter:
    def __init__(self, on_done: OnDone) -> None:
        self._on_done = on_done

    def accepted(self, accepted: Accepted) -> None:
        pass

    def delta(self, text: Sequence[str], attempt: int) -> None:
        pass

    def reply(self, reply: Reply, encoded: bytes) -> None:
        self._on_done(msgspec.json.decode(encoded))


class AppServer:
    """An app enters by the same door as every caller. `route` is opaque here: what an app needs to go on."""

    def __init__(self, door: Door, security: Security, boot: int, post: Post) -> None:
        self._door, self._security, self._boot, self._post = door, security, boot, post
        self._named = 0

    def submit(self, app: str, body: dict[str, object], route: bytes | None, on_done: OnDone) -> None:
        """From any thread. Raises BadRequest. With a `route` the request is durable."""
        encoded = msgspec.json.encode(body)
        request = decode_request("chat", encoded)
        if not isinstance(request, ChatRequest):
            raise Internal(f"app {app} made a {type(request).__name__}")
        caller, waiter = self._security.app(app), AppWaiter(on_done)

        def arrive() -> None:
            self._named += 1
            name = f"{self._boot}-a{self._named}"
            arrival = Arrival(
                "chat",
                encoded,
                request,
                caller,
                name,
                waiter,
                route is not None,
                route or b"",
                request.deadline_ms,
                local=True,
            )
            self._door.arrive(arrival)

        self._post(arrive)

    def resume(self, app: str, entry: Entry, on_done: OnDone) -> None:
        """Take up a run of the journal again. On the kernel's thread."""
        request = decode_request(entry.op, entry.body)
        if isinstance(request, ChatRequest):
            waiter, caller = AppWaiter(on_done), self._security.app(app)
            self._door.arrive(
                Arrival(entry.op, entry.body, request, caller, entry.id, waiter, durable=True, entry=entry, local=True)
            )
