"""The daemon's side of a worker: spawn it, talk to it, tell its death; an Engine for the kernel."""

import contextlib
import logging
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Final

import msgspec

from llmasos_edge.engine.protocol import (
    Answer,
    Command,
    Forget,
    Frames,
    Load,
    Prepare,
    Program,
    Resize,
    SwitchIn,
    SwitchOut,
    send,
)
from llmasos_edge.errors import Internal, LLMasOSError
from llmasos_edge.kernel.hal import Died, Piece, Quantum, Refused, Save
from llmasos_edge.kernel.memory.extent import CONTROL_PAGE
from llmasos_edge.kernel.task import Task
from llmasos_edge.kernel.units import ModelId, SequenceId, TaskId, Tokens

ENVIRONMENT: Final = {"GGML_NO_BACKTRACE": "1"}
log = logging.getLogger(__name__)
EXIT_S: Final = 5.0  # a worker whose socket is closed has so long to go
Deliver = Callable[[ModelId, Answer | Command], None]


class WorkerHost:
    """Commands never block the caller: a sender thread writes them, a reader thread delivers what comes back.
    `programs` is called on the sender thread: a session's turns may have to be read from the disk.
    """

    def __init__(
        self,
        load: Load,
        memory: int,
        programs: Callable[[Task], Program],
        deliver: Deliver,
        module: str = "llmasos_edge.engine.worker",
        confine: Callable[[int], Callable[[], None]] = lambda _pid: lambda: None,
    ) -> None:
        """`memory` is the descriptor of the model's memfd, the caller's to keep and to close: the control page, with
        the abort byte, then the arena. `confine` is told the process's id before that has done anything; it gives
        what to do when that is gone.
        """
        self._model, self._programs, self._deliver = load.model, programs, deliver
        self._stopping = False
        self._control = mmap.mmap(memory, CONTROL_PAGE)
        self._control[0] = 0  # a worker before this one may have died with it set
        self._connection, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno()), str(memory)],
            pass_fds=(theirs.fileno(), memory),
            env=ENVIRONMENT | os.environ,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._gone = confine(self.process.pid)
        self._outbox: queue.SimpleQueue[Command | Task | bool | None] = queue.SimpleQueue()
        self._outbox.put(load)
        self._threads = [
            threading.Thread(target=run, name=f"{load.model}-{run.__name__}") for run in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    # ---- Engine, for the kernel's thread

    def prepare(self, task: Task) -> None:
        self._outbox.put(task)

    def switch_in(self, task: TaskId, sequence: SequenceId, pieces: tuple[Piece, ...]) -> None:
        self._outbox.put(SwitchIn(task, sequence, pieces))

    def switch_out(self, task: TaskId, save: Save | None) -> None:
        self._outbox.put(SwitchOut(task, save))

    def resize(self, cells: Tokens) -> None:
        self._outbox.put(Resize(cells))

    def grant(self, quantum: Quantum) -> None:
        self._outbox.put(quantum)

    def command(self, command: Command) -> None:
        self._outbox.put(command)

    def interrupt(self) -> None:
        """The byte is set after the commands given so far are sent, so that the boundary it makes finds them."""
        self._outbox.put(True)

    def forget(self, task: TaskId) -> None:
        self._outbox.put(Forget(task))

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """Ends a worker that no longer reads, too, though the sender thread may wait for it."""
        self._stopping = True
        with contextlib.suppress(OSError):  # it is gone already
            self._connection.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        self.process.kill()

    def join(self) -> None:
        """Wait until the worker is gone and every byte of it is given back."""
        for thread in self._threads:
            thread.join()

    # ---- threads

    def _write(self) -> None:
        while (command := self._outbox.get()) is not None:
            try:
                if isinstance(command, bool):
                    self._control[0] = 1
                elif isinstance(command, Task):
                    self._send_prepare(command)
                else:
                    send(self._connection, command)
            except OSError:
                return  # the reader sees the same end, and tells of it

    def _send_prepare(self, task: Task) -> None:
        try:
            program = self._programs(task)
        except Exception as error:  # an edge: whatever is wrong with one task's program, the others' go on
            log.exception("the program of task %s can't be had", task.id)
            known = error if isinstance(error, LLMasOSError) else Internal(f"{type(error).__name__}: {error}")
            self._deliver(self._model, Refused(task.id, known.wire()))
        else:
            send(self._connection, Prepare(task.id, program))

    def _read(self) -> None:
        frames, why = Frames(), ""
        try:
            while data := self._connection.recv(1 << 16):
                for message in frames.feed(data):
                    if isinstance(message, Died):
                        why = message.why
                    elif not self._stopping:  # else the kernel has forgotten this worker, and may have another
                        self._deliver(self._model, message)
        except OSError:
            pass  # it died with frames of ours unread
        except msgspec.DecodeError as error:
            why = f"its messages can't be read: {error}"
            self.process.kill()
        ended = self._wait()
        self._gone()
        self._outbox.put(None)
        self._threads[0].join()
        self._connection.close()
        self._control.close()
        self._deliver(self._model, Died(self._model, why or ended))

    def _wait(self) -> str:
        """How the process ended."""
        try:
            code = self.process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
