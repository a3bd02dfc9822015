"""Many chats at once with a server of OpenAI's API: one thread, one loop over their sockets, a connection for each."""

import json
import selectors
import socket
import time
from typing import Any, Final

from benchmarks.peer_server import HOST

READ: Final = 1 << 16
LINE_END: Final = b"\r\n"
HEAD_END: Final = LINE_END * 2
EVENT: Final = b"data: "


class Chat:
    """One answer as it comes; moments are seconds of time.perf_counter(), `first` that of the first text.

    `characters`: of its text. `tokens`: as the server counts them; only of an answer that is not streamed.
    """

    __slots__ = ("_body", "_chunked", "_head", "_rest", "characters", "ended", "failure", "first", "sent", "tokens")

    def __init__(self) -> None:
        self.sent = time.perf_counter()
        self.first = self.ended = 0.0
        self.characters = self.tokens = 0
        self.failure = ""
        self._rest = bytearray()  # what is not understood yet: of the head, then of the chunks
        self._body = bytearray()  # lines that are not complete yet
        self._head = True
        self._chunked = False

    def take(self, data: bytes) -> None:
        """What came over the connection."""
        self._rest += data
        if self._head:
            if HEAD_END not in self._rest:
                return
            self._read_head()
        self._body += self._chunks() if self._chunked else self._rest
        if not self._chunked:
            self._rest.clear()
        *lines, self._body = self._body.split(b"\n")
        for line in lines:
            if line.startswith(EVENT + b"{"):
                self._read_event(json.loads(line[len(EVENT) :]))

    def end(self) -> None:
        """The connection is at its end: what was not streamed is complete now."""
        self.ended = time.perf_counter()
        if self._body.startswith(b"{"):
            self._read_whole(json.loads(self._body))
        if not self.failure and not self.characters:
            self.failure = "an answer without a text"

    def _read_head(self) -> None:
        head, _, self._rest = self._rest.partition(HEAD_END)
        self._head = False
        status, *fields = head.lower().split(LINE_END)
        self._chunked = any(field.startswith(b"transfer-encoding:") and b"chunked" in field for field in fields)
        if status.split()[1] != b"200":
            self.failure = status.decode(errors="replace")

    def _chunks(self) -> bytes:
        """Of the body what is there whole (RFC 9112, 7.1)."""
        whole = bytearray()
        while (end := self._rest.find(LINE_END)) > 0:
            size = int(self._rest[:end].split(b";")[0], 16)
            start, stop = end + len(LINE_END), end + len(LINE_END) + size
            if len(self._rest) < stop + len(LINE_END):
                break
            whole += self._rest[start:stop]
            del self._rest[: stop + len(LINE_END)]
        return bytes(whole)

    def _read_event(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.failure = str(event["error"])
        for choice in event.get("choices", ()):
            self._hear(choice.get("delta", {}).get("content"))

    def _read_whole(self, answer: dict[str, Any]) -> None:
        for choice in answer.get("choices", ()):
            self._hear(choice["message"]["content"])
        self.tokens = answer.get("usage", {}).get("completion_tokens", 0)
        if "error" in answer:
            self.failure = str(answer["error"])

    def _hear(self, text: str | None) -> None:
        if text:
            self.first = self.first or time.perf_counter()
            self.characters += len(text)


class Streams:
    """All chats with one server. The caller turns the loop (`turn`), and nothing happens meanwhile."""

    def __init__(self, port: int, model: str) -> None:
        self._address = (HOST, port)
        self._model = model
        self._selector = selectors.DefaultSelector()
        self._open: dict[Chat, socket.socket] = {}

    def begin(self, text: str, tokens: int, *, stream: bool = True, tier: str = "default") -> Chat:
        """Ask; no token comes before a `turn`. `tier`: OpenAI's service_tier, which servers without classes ignore."""
        body = json.dumps(
            {
                "model": self._model,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": tokens,
                "temperature": 0.7,
                "stream": stream,
                "service_tier": tier,
            }
        ).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        chat, connection = Chat(), socket.socket()
        connection.setblocking(False)
        connection.connect_ex(self._address)
        self._open[chat] = connection
        self._selector.register(connection, selectors.EVENT_WRITE, (chat, head.encode() + body))
        return chat

    def turn(self, seconds: float) -> list[Chat]:
        """Wait so long at most for something to happen, take it, and tell which chats have ended by it."""
        ended = []
        for key, _ in self._selector.select(max(0.0, seconds)):
            chat, request = key.data
            connection = self._open[chat]
            try:
                if request:
                    connection.sendall(request)  # a few hundred bytes: the socket's buffer takes them at once
                    self._selector.modify(connection, selectors.EVENT_READ, (chat, b""))
                    continue
                data = connection.recv(READ)
            except OSError as error:
                chat.failure, data = str(error), b""
            if data:
                chat.take(data)
            else:
                chat.end()
                self.leave(chat)
                ended.append(chat)
        return ended

    def leave(self, chat: Chat) -> None:
        """Hang up, whether it has ended or not."""
        connection = self._open.pop(chat)
        self._selector.unregister(connection)
        connection.close()

    def close(self) -> None:
        for chat in list(self._open):
            self.leave(chat)
        self._selector.close()
