"""Tests of the turns of sessions: what was said in this run is never read back from a disk that lags behind."""

from llmasos_edge.api.conversations import KEPT, Conversations
from llmasos_edge.engine.protocol import Message


class Disk:
    """Counts what is read of it."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, str]] = []

    def __call__(self, client: str, session: str) -> list[dict[str, object]]:
        self.reads.append((client, session))
        return [{"role": "user", "content": f"old {session}"}]


def contents(conversations: Conversations, session: str) -> list[str]:
    return [message.content for message in conversations.turns("c", session)]


def test_the_disk_is_read_once_and_turns_are_added() -> None:
    """The old ones first; the new ones at once, although they are not written yet."""
    disk = Disk()
    conversations = Conversations(disk)
    conversations.append("c", "s", [Message("user", "new")])
    assert contents(conversations, "s") == ["old s", "new"]
    assert contents(conversations, "s") == ["old s", "new"]
    assert disk.reads == [("c", "s")]


def test_sessions_of_two_clients_are_two() -> None:
    """The name of a session belongs to its client."""
    conversations = Conversations(Disk())
    conversations.append("c", "s", [Message("user", "mine")])
    assert [message.content for message in conversations.turns("d", "s")] == ["old s"]


def test_only_what_is_written_is_let_go() -> None:
    """Many sessions later an unwritten turn is still here; a written one is read again from the disk."""
    disk = Disk()
    conversations = Conversations(disk)
    for session in ("kept", "gone"):
        conversations.append("c", session, [Message("user", "new")])
    conversations.written("c", "gone")
    for number in range(KEPT + 5):
        conversations.turns("c", f"other-{number}")
    assert contents(conversations, "kept") == ["old kept", "new"]
    assert contents(conversations, "gone") == ["old gone"]
