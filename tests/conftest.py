"""What every test is held to: it leaves no thread, no child process and no open file behind."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

SETTLE_S = 2.0  # what ends by itself, such as a thread that was told to stop, may take this long


def _children() -> set[str]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended since
            found |= {f"process {pid}" for pid in (task / "children").read_text().split()}
    return found


def _files() -> set[str]:
    found = set()
    for link in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the listing's own descriptor must be seen to be gone below
        try:
            found.add(f"file {link}: {os.readlink(f'/proc/self/fd/{link}')}")  # noqa: PTH115
        except FileNotFoundError:
            continue
    return found


def _held() -> set[str]:
    threads = {f"thread {thread.name} {thread.native_id}" for thread in threading.enumerate()}
    return threads | _children() | _files()


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    """Fails a test after which a thread, a child process or an open file is left that was not there before."""
    before = _held()
    yield
    deadline = time.monotonic() + SETTLE_S
    while leaked := _held() - before:
        gc.collect()
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {', '.join(sorted(leaked))}")
        time.sleep(0.01)
