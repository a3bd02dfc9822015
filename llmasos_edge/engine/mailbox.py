"""A worker's mailbox: commands from the daemon, sorted to the front thread and to the compute thread."""

import queue
import select
import socket
import threading
from collections.abc import Callable

from llmasos_edge.engine.protocol import Answer, Command, Forget, Frames, Prepare
from llmasos_edge.engine.work import Work


class Mailbox:
    """A reader thread waits for the socket; the compute thread may also look at a step boundary, so that whatever was
    sent before an interrupt is seen at the boundary that the interrupt makes.
    """

    def __init__(self, connection: socket.socket, closed: Callable[[], None]) -> None:
        self._connection, self._closed = connection, closed
        self._frames = Frames()
        self._lock = threading.Lock()
        self.front: queue.SimpleQueue[Prepare | Forget | Work] = queue.SimpleQueue()  # Work: an answer to check
        self._commands: queue.SimpleQueue[Command | Answer] = queue.SimpleQueue()

    def start(self) -> None:
        threading.Thread(target=self._read, name="reader", daemon=True).start()

    def _read(self) -> None:
        while True:
            select.select([self._connection], [], [])
            self._pump()

    def _pump(self) -> None:
        """Take what is there. The daemon's end of the socket closing ends the worker."""
        with self._lock:
            while True:
                try:
                    data = self._connection.recv(1 << 16, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return
                except OSError:
                    data = b""
                if not data:
                    self._closed()
                    return
                for message in self._frames.feed(data):
                    if isinstance(message, Prepare):
                        self.front.put(message)
                    else:
                        self._commands.put(message)

    def commands(self, *, wait: bool) -> list[Command | Answer]:
        """For the compute thread: all commands that have come; at least one, if it shall wait."""
        taken = [self._commands.get()] if wait else []
        self._pump()
        while True:
            try:
                taken.append(self._commands.get_nowait())
            except queue.Empty:
                return taken
