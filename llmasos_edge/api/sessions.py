"""The node's sessions as an operator sees them: their turns are in the journal, their KV state is the swapper's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmasos_edge.api.conversations import Conversations
from llmasos_edge.errors import BadRequest, UnknownSession
from llmasos_edge.kernel.memory.kv_state import KvState, Residency
from llmasos_edge.kernel.swapper import Swapper
from llmasos_edge.kernel.turns import Turns
from llmasos_edge.kernel.units import ClientId, SessionId
from llmasos_edge.services.journal import Journal, SessionRow

Json = dict[str, object]
Key = tuple[ClientId, SessionId]


@dataclass(frozen=True, slots=True)
class Sessions:
    """`states` and `act` are for the kernel's thread; what reads the journal may wait for the disk."""

    journal: Journal
    conversations: Conversations
    swapper: Swapper
    turns: Turns

    def states(self) -> dict[Key, list[Json]]:
        """The KV states of each session, as they are now."""
        found: dict[Key, list[Json]] = {}
        for state in self.swapper.states():
            if state.session is not None:
                found.setdefault(state.session, []).append(_state(state))
        return found

    def listing(self, states: dict[Key, list[Json]]) -> list[Json]:
        """A row for each session and model that it has talked to, the one used last first."""
        nothing: Json = {"model": None, "state": Residency.DROPPED.value, "tokens": 0, "bytes": 0}
        return [
            {"client": row.client, "session": row.name, **state, "messages": row.messages, "idle_ms": row.idle_ms}
            for row in self.journal.sessions()
            for state in states.get((ClientId(row.client), SessionId(row.name)), [nothing])
        ]

    def find(self, name: str, client: str | None) -> SessionRow:
        """Raises UnknownSession, and BadRequest if several clients have one of this name."""
        found = [row for row in self.journal.sessions() if row.name == name and client in (None, row.client)]
        if not found:
            raise UnknownSession(f"there is no session {name!r}: see `llmasos sessions`")
        if len(found) > 1:
            clients = ", ".join(row.client for row in found)
            raise BadRequest(f"session {name!r}: several clients have one ({clients}): say which with --client")
        return found[0]

    def detail(self, row: SessionRow, states: Sequence[Json]) -> Json:
        """What was said, and where its KV state lies."""
        turns = [
            {"role": turn.role, "content": turn.content} for turn in self.conversations.turns(row.client, row.name)
        ]
        return {
            "client": row.client,
            "session": row.name,
            "messages": row.messages,
            "idle_ms": row.idle_ms,
            "states": list(states),
            "turns": turns,
        }

    def park(self, row: SessionRow) -> list[Json]:
        """Move its KV state out of RAM, as far as it is on the disk; the rest follows when it is written."""
        states = self._idle(row)
        for state in states:
            self.swapper.swap_out(state)
        return [_state(state) for state in states]

    def remove(self, row: SessionRow, then: Callable[[], None]) -> None:
        """Forget what was said and what was computed; `then` is called when the disk has it."""
        for state in self._idle(row):
            self.swapper.forget(state)
        self.conversations.forget(row.client, row.name)
        self.journal.forget_session(row.client, row.name, lambda _: then())

    def expired(self, sessions: Sequence[tuple[str, str]]) -> None:
        """They were idle for too long: what was said is gone, and what was computed goes."""
        for client, name in sessions:
            key = ClientId(client), SessionId(name)
            if not self.turns.waiting(key):
                self.conversations.forget(client, name)
                for state in self.swapper.of_session(key):
                    self.swapper.forget(state)

    def _idle(self, row: SessionRow) -> Sequence[KvState]:
        key = ClientId(row.client), SessionId(row.name)
        if self.turns.waiting(key):
            raise BadRequest(f"session {row.name!r} has tasks: wait for them, or kill them first (`llmasos ps`)")
        return self.swapper.of_session(key)


def _state(state: KvState) -> Json:
    return {
        "model": state.model,
        "state": state.residency.value,
        "tokens": state.end,
        "bytes": state.bytes,
        "segments": len(state.segments),
    }
