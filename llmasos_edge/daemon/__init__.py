"""The daemon: the composition root. Everything is put together here, and taken apart in the reverse order."""

from llmasos_edge.daemon.main import main

__all__ = ["main"]
