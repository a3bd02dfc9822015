"""Who may do what: a client's priority ceiling, whether it may operate models, and where its replies may go."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from llmasos_edge.errors import NotPermitted
from llmasos_edge.kernel.units import ClientId, Priority

OPERATOR: Final = ClientId("operator")
LOCAL_HTTP: Final = ClientId("http")
RESERVED: Final = (OPERATOR, LOCAL_HTTP)  # nobody else may have these names


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who calls, as far as it is proven."""

    client: ClientId
    ceiling: Priority
    operate: bool = False
    reply_topics: tuple[str, ...] = ()
    app: str | None = None  # the node's own app that calls

    def cap(self, wanted: Priority) -> Priority:
        """The class that the caller gets for the one it asks for."""
        return min(wanted, self.ceiling)

    def must_operate(self, op: str) -> None:
        """Raises NotPermitted unless it may load, drop and pull models."""
        if not self.operate:
            raise NotPermitted(f"{self.client} may not {op}: give it `operate: true` under `clients` in the node file")


class Security:
    """Under `acl` the broker proves the client in the topic; under `open` a name proves nothing and gains nothing."""

    def __init__(self, callers: Iterable[Caller], *, proven: bool) -> None:
        self._proven = proven
        self.know(callers)

    def know(self, callers: Iterable[Caller]) -> None:
        """From now on these, and no others, have rights of their own."""
        self._callers: Mapping[str, Caller] = {caller.client: caller for caller in callers}

    def mqtt(self, client: str) -> Caller:
        """Raises NotPermitted for the names of those who call in other ways."""
        if client in RESERVED:
            whose = "the control socket's caller" if client == OPERATOR else "who calls over HTTP without a key"
            raise NotPermitted(f"{client!r} is the name of {whose}: take another")
        default = Priority.CRITICAL if self._proven else Priority.NORMAL
        known = self._callers.get(client) or Caller(ClientId(client), default)
        if self._proven:
            return known
        return Caller(known.client, min(known.ceiling, Priority.NORMAL), operate=False, reply_topics=known.reply_topics)

    def operator(self) -> Caller:
        """Who reaches the control socket."""
        return Caller(OPERATOR, Priority.CRITICAL, operate=True)

    def http(self, client: ClientId = LOCAL_HTTP) -> Caller:
        """Who has shown a client's key, or needs none."""
        return self._callers.get(client) or Caller(client, Priority.CRITICAL)

    def app(self, name: str) -> Caller:
        """What the node file's own apps do."""
        return Caller(ClientId(f"app/{name}"), Priority.CRITICAL, app=name)  # no MQTT client: no level has a slash
