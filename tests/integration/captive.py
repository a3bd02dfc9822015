"""A real worker that tries to break out when a prompt tells it how: it refuses the prompt with what came of it."""

import ctypes
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmasos_edge.engine import worker
from llmasos_edge.engine.protocol import Prepare
from llmasos_edge.engine.work import Work
from llmasos_edge.errors import BadRequest

LIBC = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: object) -> None:
    """A function of libc. Raises OSError if it fails."""
    if getattr(LIBC, name)(*args) == -1:
        raise OSError(ctypes.get_errno(), name)


def _socket(family: int) -> None:
    socket.socket(family, socket.SOCK_STREAM).close()


def _inherited(connection: socket.socket) -> None:
    connection.connect("/run/somebody")


def _arena() -> int:
    return int(sys.argv[2])


ATTEMPTS: dict[str, Callable[[Path, socket.socket], object]] = {
    "read /etc/passwd": lambda _model, _socket: Path("/etc/passwd").read_bytes(),
    "read the file beside its model": lambda model, _socket: model.with_name("secret").read_bytes(),
    "list the folder of its model": lambda model, _socket: os.listdir(model.parent),  # noqa: PTH208
    "read /proc/self/environ": lambda _model, _socket: Path("/proc/self/environ").read_bytes(),
    "write its model": lambda model, _socket: model.open("r+b").close(),
    "make a file": lambda model, _socket: model.with_name("new").touch(),
    "make a folder": lambda model, _socket: model.with_name("new").mkdir(),
    "remove its model": lambda model, _socket: model.unlink(),
    "shrink the arena": lambda _model, _socket: os.ftruncate(_arena(), 0),
    "open an internet socket": lambda *_: _socket(socket.AF_INET),
    "open a Unix socket": lambda *_: _socket(socket.AF_UNIX),
    "connect the socket it has": lambda _model, connection: _inherited(connection),
    "run a program": lambda *_: os.execv("/bin/true", ["true"]),
    "fork": lambda *_: os.fork(),
    "spawn": lambda *_: os.posix_spawn("/bin/true", ["true"], {}),
    "kill the daemon": lambda *_: os.kill(os.getppid(), signal.SIGKILL),
    "signal the daemon's thread": lambda *_: _call("tgkill", os.getppid(), os.getppid(), signal.SIGKILL),
    "trace the daemon": lambda *_: _call("ptrace", 16, os.getppid(), None, None),
    "outlive the daemon": lambda *_: _call("prctl", 1, 0, 0, 0, 0),
    "leave its namespaces": lambda *_: _call("unshare", 0x10000000),
    "mount": lambda *_: _call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "make a memory file": lambda *_: os.memfd_create("x"),
    "wait for a child": lambda *_: os.waitpid(-1, os.WNOHANG),
    "set the group of all": lambda *_: os.setpgid(0, 0),
    "read the daemon's memory": lambda *_: _call("process_vm_readv", os.getppid(), None, 0, None, 0, 0),
}


def _attempt(self: worker.Worker, prepare: Prepare) -> Work:
    """In place of Worker._prepare, on the front thread of a worker that is loaded and computing."""
    name = (prepare.program.messages or ())[0].content
    if name not in ATTEMPTS:
        return _prepare(self, prepare)
    held: Any = self
    try:
        ATTEMPTS[name](Path(held._load.path), held._connection)
    except OSError as error:
        raise BadRequest(errno.errorcode[error.errno or 0]) from error
    raise BadRequest("it succeeded")


_prepare = worker.Worker._prepare
worker.Worker._prepare = _attempt  # type: ignore[method-assign]

if __name__ == "__main__":
    worker.main()
