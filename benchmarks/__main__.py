"""The command `python -m benchmarks [NAME]`: runs one benchmark, or all of them."""

import argparse
import importlib
import signal
import sys
from typing import Final

NAMES: Final = (
    *("decode", "mqtt", "memory", "footprint", "models", "budget", "worker"),
    *("swap-crash", "fit", "pressure", "sessions", "prefix", "kernel"),
    *("simulate", "promises", "urgent", "throughput"),
)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whatever runs is taken down on the way out
    parser = argparse.ArgumentParser(
        prog="benchmarks",
        description="Benchmarks, each beside its peer or its goal; without a name, all of them (docs/benchmarks.md).",
    )
    commands = parser.add_subparsers(dest="name", metavar="NAME")
    modules = {name: importlib.import_module(f"benchmarks.{name.replace('-', '_')}") for name in NAMES}
    defaults = {}
    for name, module in modules.items():
        command = commands.add_parser(name, help=module.TITLE, description=module.TITLE)
        module.arguments(command)
        defaults[name] = command.parse_args([])
    options = parser.parse_args()
    if options.name is not None:
        modules[options.name].run(options)
    else:
        for name, module in modules.items():
            module.run(defaults[name])


if __name__ == "__main__":
    main()
