"""The worker's sandbox: from here on it can read its model and Python's libraries, and do nothing else to the machine.

What follows parses a model file from the internet, and runs its chat template. Landlock says which files may be opened
(landlock(7)), seccomp which system calls may be made; each still holds where the kernel lacks the other.
"""

import ctypes
import os
import site
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from llmasos_edge.engine import seccomp
from llmasos_edge.errors import Panic

FULL: Final = "landlock+seccomp"
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same on every machine
VERSION: Final = 1  # LANDLOCK_CREATE_RULESET_VERSION
PATH_BENEATH: Final = 1
READ_FILE, READ_DIR = 1 << 2, 1 << 3
FILES: Final = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}  # rights to files, by the ABI that knows them
TCP: Final = {4: 0b11}  # bind and connect
SCOPES: Final = {6: 0b11}  # abstract Unix sockets and signals of processes outside
LIBRARIES: Final = (*site.getsitepackages(), str(Path(os.__file__).parent), str(Path(__file__).parents[1]))
THREADS: Final = "/proc/self/task"  # how long its own wait for a core (engine/gang.py)


def enter(model: Path) -> str:
    """Close the sandbox around this process, and say what it is made of. Raises Panic if there are other threads.

    Modules may be imported later; a model that is not there is for the loader to tell.
    """
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - names are enough
        raise Panic("sandbox.enter: other threads would stay outside")
    files, calls = _landlock(model), seccomp.install()
    return "+".join(name for name, closed in (("landlock", files), ("seccomp", calls)) if closed) or "none"


def _landlock(model: Path) -> bool:
    """False: this kernel has no Landlock, or it is not switched on."""
    libc = ctypes.CDLL(None)
    libc.syscall.argtypes = [ctypes.c_long, *[ctypes.c_void_p] * 4]
    libc.syscall.restype = ctypes.c_long
    abi = libc.syscall(CREATE_RULESET, None, 0, VERSION, 0)
    if abi < 1:
        return False
    _pin(THREADS)
    rights = struct.pack("=QQQ", *(_known(table, abi) for table in (FILES, TCP, SCOPES)))
    ruleset = libc.syscall(CREATE_RULESET, rights, len(rights), 0, 0)
    if ruleset < 0:
        return False
    try:
        for path, allowed in (
            (str(model), READ_FILE),
            *((path, READ_FILE | READ_DIR) for path in (*LIBRARIES, THREADS)),
        ):
            _allow(libc, ruleset, path, allowed)
        libc.prctl(seccomp.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return bool(libc.syscall(RESTRICT_SELF, ruleset, 0, 0, 0) == 0)
    finally:
        os.close(ruleset)


def _pin(path: str) -> None:
    """A rule is about an inode. Of /proc the system forgets those that nobody has open, as soon as memory is short, and
    makes others for the same names, which no rule allows: so it stays open for the life of this process.
    """
    with suppress(OSError):  # what is not there needs no right
        os.open(path, os.O_PATH | os.O_CLOEXEC)


def _known(rights: dict[int, int], abi: int) -> int:
    return sum(bits for since, bits in rights.items() if since <= abi)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there needs no right
    try:
        if libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, place), 0):
            raise Panic(f"sandbox._allow: {path}: the kernel refuses its rule")
    finally:
        os.close(place)
