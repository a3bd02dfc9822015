"""`python -m image build [--board BOARD]`, `test`, and `initramfs-modules ROOT`, which the build calls itself."""

import argparse
from pathlib import Path

from image import WORK, boot
from image.boot_test import boot_image
from image.build import build as build_image
from image.devicetree import write_modules


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run image")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build")
    build.add_argument("--board", choices=sorted(boot.TREES), default="generic")
    test = commands.add_parser("test")
    test.add_argument("image", nargs="?", type=Path, default=WORK / "llmasos-generic.img")
    modules = commands.add_parser("initramfs-modules")
    modules.add_argument("root", type=Path)
    given = parser.parse_args()
    if given.command == "build":
        print(build_image(given.board))
    elif given.command == "test":
        boot_image(given.image)
    else:
        write_modules(given.root, boot.TREES["raspberry-pi"].values())


main()
