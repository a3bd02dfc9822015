"""The lock of a state directory: one daemon at a time."""

import fcntl
import os
from pathlib import Path

from llmasos_edge.errors import ConfigError


class StateLock:
    """flock(2) on `lock` in the directory; the file tells the owner's pid. Ends with the process at the latest."""

    def __init__(self, state: Path) -> None:
        """Raises ConfigError if the directory can't be made, or another daemon has it."""
        path = state / "lock"
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{state}: the state directory can't be used: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._fd, 32).decode(errors="replace").strip() or "?"
            os.close(self._fd)
            raise ConfigError(
                f"{state}: another llmasosd (pid {owner}) uses this state directory: stop it first"
            ) from None
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        os.close(self._fd)
