"""python -m llmasos_edge.demo [--ask TEXT]: exit 0 if every step went well, 1 if one failed, 130 after Ctrl-C."""

import argparse
import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final, NoReturn

from llmasos_edge import __version__
from llmasos_edge.demo.failure import DemoFailed
from llmasos_edge.demo.node import DemoNode
from llmasos_edge.demo.scenes import FILTERS, QUESTION, Scenes
from llmasos_edge.demo.screen import BOLD, GREEN, Screen
from llmasos_edge.demo.wire import Wire
from llmasos_edge.errors import LLMasOSError

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal asks the demo to end."""


def main() -> int:
    question = _question()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    screen = Screen()
    started = time.monotonic()
    try:
        with _node() as node:
            _play(node, screen, question)
        screen.line(
            f"All of it worked, in {time.monotonic() - started:.0f} s. The node is stopped; nothing is left running.",
            GREEN,
        )
        screen.line("Next: ./run serve keeps a node running, and README.md says how to talk to it.")
    except (DemoFailed, LLMasOSError) as error:
        print(f"\ndemo: failed: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        print("\ndemo: interrupted; the node is stopped", file=sys.stderr)
        return 128 + int(error.args[0])
    except BrokenPipeError:  # whoever read along has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _question() -> str | None:
    parser = argparse.ArgumentParser(
        prog="./run demo", description="Boot a node with a broker of its own, and ask it real questions over MQTT."
    )
    parser.add_argument("--ask", metavar="TEXT", help="your own question, in place of the demo's")
    question: str | None = parser.parse_args().ask
    if question is not None and not question.strip():
        parser.error("--ask: the question is empty")
    return question


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise Interrupted(number)


@contextmanager
def _node() -> Iterator[DemoNode]:
    """Signals wait while it is stopped, so that nothing can be left running."""
    node = DemoNode()
    try:
        yield node
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        node.stop()


def _play(node: DemoNode, screen: Screen, question: str | None) -> None:
    screen.line(
        f"LLMasOS Edge {__version__}: a language model as a device that sensors, programs and people share.", BOLD
    )
    screen.title("1. A node boots, with a broker and a model of its own")
    screen.command(*node.command)
    node.start()
    started = time.monotonic()
    status = node.wait_until_ready(screen.note)
    screen.note(f"ready after {time.monotonic() - started:.1f} s")
    port = status["broker"]["port"]
    with closing(Wire(port, FILTERS, node.check)) as wire:
        scenes = Scenes(node, wire, screen)
        scenes.subscribe()
        screen.title("2. A chat: the answer streams" if question is None else "2. Your question: the answer streams")
        scenes.chat(question or QUESTION, limit=80 if question is None else 200)
        screen.title("3. An app: a text goes in, a summary comes out")
        scenes.summarize()
        screen.title("4. A smoke sensor triggers an app, with and without a temperature")
        scenes.alarms()
    screen.title("5. What the kernel did: its tasks, and where the memory is")
    scenes.look()


if __name__ == "__main__":
    sys.exit(main())
