"""The system calls that a worker may make once it computes: a seccomp filter, built here as a BPF program.

It is a list of what is allowed, so that what a future kernel adds is denied (EPERM) from the beginning. On it are
memory, threads of its own, waiting, its own signals, reading files, and the descriptors that it has already.
Not on it is arch_prctl(2), with which ggml asks for AMX: this version's AMX code died in its first step here.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

PR_SET_NO_NEW_PRIVS: Final = 38  # prctl(2)
PR_SET_SECCOMP: Final = 22
SECCOMP_MODE_FILTER: Final = 2

ALLOW: Final = 0x7FFF0000  # seccomp(2): what a filter returns
KILL_PROCESS: Final = 0x80000000
ERRNO: Final = 0x00050000

LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS: a word of struct seccomp_data
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
RETURN: Final = 0x06  # BPF_RET | BPF_K
NUMBER, ARCHITECTURE, ARGUMENTS = (
    0,
    4,
    16,
)  # offsets in struct seccomp_data; its integers are little-endian on both machines
_INSTRUCTION: Final = struct.Struct("=HBBI")


class Call(NamedTuple):
    """A system call's number on x86-64 and on aarch64; None: there is no such call."""

    x86_64: int | None
    aarch64: int | None


class Only(NamedTuple):
    """Allowed only if the argument's lower word has this value under the mask."""

    argument: int
    mask: int
    value: int


WORD: Final = 0xFFFFFFFF
WRITING: Final = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
THREAD: Final = 0x00010000  # CLONE_THREAD
NAMESPACES: Final = 0x7E020000  # CLONE_NEWNS and its kin
PR_SET_NAME: Final = 15
LOCKS: Final = 7  # the highest fcntl(2) command before F_SETOWN, which could have signals sent to others

PLAIN: Final[Mapping[str, Call]] = {
    # memory
    "brk": Call(12, 214),
    "madvise": Call(28, 233),
    "mmap": Call(9, 222),
    "mprotect": Call(10, 226),
    "mremap": Call(25, 216),
    "munmap": Call(11, 215),
    # threads, and waiting
    "clock_getres": Call(229, 114),
    "clock_gettime": Call(228, 113),
    "clock_nanosleep": Call(230, 115),
    "exit": Call(60, 93),
    "exit_group": Call(231, 94),
    "futex": Call(202, 98),
    "getpid": Call(39, 172),
    "gettid": Call(186, 178),
    "gettimeofday": Call(96, 169),
    "membarrier": Call(324, 283),
    "nanosleep": Call(35, 101),
    "poll": Call(7, None),
    "ppoll": Call(271, 73),
    "pselect6": Call(270, 72),
    "restart_syscall": Call(219, 128),
    "rseq": Call(334, 293),
    "sched_getaffinity": Call(204, 123),
    "sched_yield": Call(24, 124),
    "select": Call(23, None),
    "set_robust_list": Call(273, 99),
    # its own signals
    "rt_sigaction": Call(13, 134),
    "rt_sigprocmask": Call(14, 135),
    "rt_sigreturn": Call(15, 139),
    "sigaltstack": Call(131, 132),
    # descriptors that it has
    "close": Call(3, 57),
    "dup": Call(32, 23),
    "fadvise64": Call(221, 223),
    "fstat": Call(5, 80),
    "lseek": Call(8, 62),
    "pread64": Call(17, 67),
    "read": Call(0, 63),
    "readv": Call(19, 65),
    "recvfrom": Call(45, 207),
    "sendto": Call(44, 206),
    "write": Call(1, 64),
    "writev": Call(20, 66),
    # looking at files; which of them may be opened is Landlock's to say
    "access": Call(21, None),
    "faccessat": Call(269, 48),
    "faccessat2": Call(439, 439),
    "getcwd": Call(79, 17),
    "getdents64": Call(217, 61),
    "lstat": Call(6, None),
    "newfstatat": Call(262, 79),
    "readlink": Call(89, None),
    "readlinkat": Call(267, 78),
    "stat": Call(4, None),
    "statx": Call(332, 291),
    # facts about the machine and itself
    "getegid": Call(108, 177),
    "geteuid": Call(107, 175),
    "getgid": Call(104, 176),
    "getrandom": Call(318, 278),
    "getuid": Call(102, 174),
    "sysinfo": Call(99, 179),
    "uname": Call(63, 160),
}
GUARDED: Final[tuple[tuple[Call, Only], ...]] = (
    (Call(56, 220), Only(0, THREAD | NAMESPACES, THREAD)),  # clone: threads, no processes
    (Call(2, None), Only(1, WRITING, os.O_RDONLY)),  # open
    (Call(257, 56), Only(2, WRITING, os.O_RDONLY)),  # openat
    (Call(72, 25), Only(1, WORD & ~LOCKS, 0)),  # fcntl
    (Call(157, 167), Only(0, WORD, PR_SET_NAME)),  # prctl
    (Call(302, 261), Only(0, WORD, 0)),  # prlimit64: of itself
)
TGKILL: Final = Call(234, 131)  # of itself: abort(3)
ANSWERED: Final = (
    (Call(435, 435), errno.ENOSYS),  # clone3: a filter can't see its flags, and glibc then uses clone
    (Call(16, 29), errno.ENOTTY),  # ioctl: Python asks every file whether it is a terminal
)
MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def program(machine: str, pid: int) -> bytes:
    """The filter for a process, as struct sock_filter[]. Raises KeyError for a machine that the table does not know."""
    column, architecture = MACHINES[machine]
    code = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL_PROCESS), (LOAD, 0, 0, NUMBER)]
    for call in PLAIN.values():
        code += _answer(call[column], ALLOW)
    for call, failure in ANSWERED:
        code += _answer(call[column], ERRNO | failure)
    for call, only in (*GUARDED, (TGKILL, Only(0, WORD, pid))):
        code += _guard(call[column], only)
    code.append((RETURN, 0, 0, ERRNO | errno.EPERM))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def _answer(number: int | None, answer: int) -> list[tuple[int, int, int, int]]:
    return [] if number is None else [(EQUAL, 0, 1, number), (RETURN, 0, 0, answer)]


def _guard(number: int | None, only: Only) -> list[tuple[int, int, int, int]]:
    if number is None:
        return []
    return [
        (EQUAL, 0, 5, number),
        (LOAD, 0, 0, ARGUMENTS + 8 * only.argument),
        (AND, 0, 0, only.mask),
        (EQUAL, 0, 1, only.value),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, ERRNO | errno.EPERM),
    ]


def install() -> bool:
    """Put the calling thread, and all that it will start, under the filter. False: this kernel or machine has none."""
    machine = os.uname().machine
    if machine not in MACHINES:
        return False
    code = program(machine, os.getpid())
    filters = _Program(len(code) // _INSTRUCTION.size, code)
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(filters), 0, 0) == 0)
