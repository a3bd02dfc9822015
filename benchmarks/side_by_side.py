"""The node and its peers, all running, to be measured in turns, each with the settings that suit it best."""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from benchmarks.example_server import ExampleServer
from benchmarks.llama_server import LlamaServer
from benchmarks.machine import describe
from benchmarks.node import SPEC, BenchNode
from benchmarks.peer import SERVER, find_peer

NODE: Final = "here"
NAMES: Final = (NODE, LlamaServer.name, ExampleServer.name)
SEQUENCES: Final = 16
CELLS: Final = 16384  # a thousand for each sequence: no task here comes near it
HTTP_THREADS: Final = 300  # one for each connection
HTTP: Final = '  http: {{listen: "127.0.0.1:0"}}\n'


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", type=Path, metavar="PATH", help="a llama-server that is built already")
    parser.add_argument("--servers", nargs="+", choices=NAMES, default=list(NAMES), help="which to measure (all)")


@contextmanager
def running(title: str, options: argparse.Namespace) -> Iterator[dict[str, int]]:
    """The ports of all that run, after a head that says how."""
    peers = _peers(options)
    describe(title)
    ports: dict[str, int] = {}
    with ExitStack() as stack:
        if NODE in options.servers:
            node = stack.enter_context(BenchNode(spec=SPEC + HTTP))
            ports[NODE] = urlsplit(node.call("status")["http"]["url"]).port or 0
            print(f"here: {' '.join(node.config.read_text().split())}")
        for server in peers:
            ports[server.name] = stack.enter_context(server).port
            print(f"peer: {server}", flush=True)
        yield ports


def _peers(options: argparse.Namespace) -> list[LlamaServer | ExampleServer]:
    """Those that are to be measured, built if they are not there yet."""
    if set(options.servers) == {NODE}:
        return []
    binary = find_peer(SERVER, options.peer)
    flags = ("-np", str(SEQUENCES), "-c", str(CELLS), "--threads-http", str(HTTP_THREADS))
    both = (LlamaServer(binary, flags), ExampleServer(binary.resolve().parent, SEQUENCES, CELLS))
    return [server for server in both if server.name in options.servers]
