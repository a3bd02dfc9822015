"""llmasosd: reads the configuration, boots the node, waits for signals, and takes the node down again."""

import argparse
import logging
import os
import select
import signal
import sys
from pathlib import Path
from typing import Final

from llmasos_edge import __version__
from llmasos_edge.config.load import load_node
from llmasos_edge.daemon.node import Node, Places
from llmasos_edge.errors import ConfigError, LLMasOSError
from llmasos_edge.resources import resource

EX_CONFIG: Final = 78  # sysexits.h
POLL_S: Final = 1.0
PRIORITIES: Final = {"CRITICAL": "<2>", "ERROR": "<3>", "WARNING": "<4>", "INFO": "<6>", "DEBUG": "<7>"}  # sd-daemon(3)


def main() -> None:
    """Run a node in the foreground until SIGTERM or SIGINT; SIGHUP reloads the node file."""
    arguments = _arguments()
    _log_to_stderr()
    try:
        config = load_node(arguments.config, boards=resource("board"))
    except ConfigError as error:
        sys.stderr.write(f"{error.message}\n")
        sys.exit(EX_CONFIG)
    if arguments.check:
        sys.stdout.write(f"{arguments.config}: ok\n")
        return
    models = os.environ.get("LLMASOS_MODELS")
    places = Places(arguments.config.absolute(), arguments.state, arguments.runtime, Path(models) if models else None)
    try:
        node = Node(config, places)
    except LLMasOSError as error:
        logging.getLogger(__name__).critical("%s", error.message)
        sys.exit(EX_CONFIG if isinstance(error, ConfigError) else 1)
    _until_told(node)


def _until_told(node: Node) -> None:
    """The main thread: it starts the node, watches its broker, and obeys signals, which wake it through a pipe."""
    told, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    status = 0
    try:
        node.start()
        while True:
            select.select([told], [], [], POLL_S)
            numbers = _read(told)
            if signal.SIGHUP in numbers:
                node.reload_quietly()
            if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                break
            node.poll()
    except LLMasOSError as error:
        logging.getLogger(__name__).critical("%s", error.message)
        status = EX_CONFIG if isinstance(error, ConfigError) else 1
    finally:
        node.stop()
    sys.exit(status)


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 64)
    except BlockingIOError:
        return b""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llmasosd", description="The LLMasOS Edge daemon: runs one node.")
    state = os.environ.get("STATE_DIRECTORY", "/var/lib/llmasos").partition(":")[0]
    runtime = os.environ.get("RUNTIME_DIRECTORY", "/run/llmasos").partition(":")[0]
    parser.add_argument("--config", type=Path, required=True, metavar="NODE.yaml", help="the node file")
    parser.add_argument(
        "--state", type=Path, default=Path(state), metavar="DIR", help=f"models, journal, swap ({state})"
    )
    parser.add_argument("--runtime", type=Path, default=Path(runtime), metavar="DIR", help=f"control.sock ({runtime})")
    parser.add_argument("--check", action="store_true", help="read the configuration, tell its mistakes, and exit")
    parser.add_argument("--version", action="version", version=f"llmasosd {__version__}")
    return parser.parse_args()


class _JournalFormat(logging.Formatter):
    """With systemd's priority in front of each line when stderr is the journal."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = PRIORITIES.get(record.levelname, "<6>")
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_JournalFormat("%(name)s: %(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
