"""Tests of the filter, executed here as the kernel would, for both machines."""

import errno
import os
import struct

import pytest

from llmasos_edge.engine import seccomp

PID = 4242
EPERM = seccomp.ERRNO | errno.EPERM
PTHREAD_FLAGS = 0x3D0F00  # what glibc gives to clone(2) for a thread
MACHINES = ("x86_64", "aarch64")


def judge(machine: str, number: int, *args: int, architecture: int | None = None) -> int:
    """What the filter returns for a call: a BPF interpreter of the four instructions that it is made of."""
    arch = seccomp.MACHINES[machine][1] if architecture is None else architecture
    data = struct.pack("=IIQ6Q", number, arch, 0, *args, *[0] * (6 - len(args)))
    code = list(struct.iter_unpack("=HBBI", seccomp.program(machine, PID)))
    at = word = 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        match operation:
            case seccomp.LOAD:
                (word,) = struct.unpack_from("=I", data, value)
            case seccomp.AND:
                word &= value
            case seccomp.EQUAL:
                at += if_true if word == value else if_false
            case seccomp.RETURN:
                return int(value)
            case _:
                pytest.fail(f"operation {operation:#x}")


@pytest.mark.parametrize("machine", MACHINES)
def test_only_what_is_listed_is_allowed(machine: str) -> None:
    """Every other number is denied, those of calls yet to be invented too."""
    column = seccomp.MACHINES[machine][0]
    allowed = {number for number in range(600) if judge(machine, number) == seccomp.ALLOW}
    plain = {call[column] for call in seccomp.PLAIN.values()} - {None}
    guarded = {call[column] for call, only in seccomp.GUARDED if only.value == 0} - {None}
    assert allowed == plain | guarded


@pytest.mark.parametrize(
    ("machine", "numbers"),
    [
        # socket, connect, bind, execve, execveat, ptrace, mount, bpf, unshare, setns, keyctl, ftruncate, io_uring_setup
        ("x86_64", (41, 42, 49, 59, 322, 101, 165, 321, 272, 308, 250, 77, 425)),
        ("aarch64", (198, 203, 200, 221, 281, 117, 40, 280, 97, 268, 219, 46, 425)),
    ],
)
def test_the_way_out_is_denied(machine: str, numbers: tuple[int, ...]) -> None:
    """Network, programs, other processes, namespaces, keys; by the numbers of each machine's own table."""
    assert {judge(machine, number) for number in numbers} == {EPERM}


@pytest.mark.parametrize("machine", MACHINES)
def test_clone_makes_threads_alone(machine: str) -> None:
    """No process (fork gives SIGCHLD alone), no namespace; clone3 is unknown, so that glibc takes clone."""
    clone = seccomp.GUARDED[0][0][seccomp.MACHINES[machine][0]]
    assert clone is not None
    assert judge(machine, clone, PTHREAD_FLAGS) == seccomp.ALLOW
    assert judge(machine, clone, 17) == EPERM
    assert judge(machine, clone, PTHREAD_FLAGS | 0x40000000) == EPERM
    assert judge(machine, 435) == seccomp.ERRNO | errno.ENOSYS


@pytest.mark.parametrize(("machine", "openat", "tgkill"), [("x86_64", 257, 234), ("aarch64", 56, 131)])
def test_arguments_are_looked_at(machine: str, openat: int, tgkill: int) -> None:
    """Files are opened for reading only, and signals are sent to itself only."""
    assert judge(machine, openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY) == seccomp.ALLOW
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC):
        assert judge(machine, openat, 0, 0, flags) == EPERM
    assert judge(machine, tgkill, PID) == seccomp.ALLOW
    assert judge(machine, tgkill, PID + 1) == EPERM


def test_another_architecture_s_numbers_end_the_process() -> None:
    """32-bit calls have other numbers: what they would mean is not looked at. x32's are not on the list."""
    assert judge("x86_64", 0, architecture=0x40000003) == seccomp.KILL_PROCESS
    assert judge("x86_64", 0x40000000 | 1) == EPERM
