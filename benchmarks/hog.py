"""A memory hog: takes so many MiB a second until a line comes on stdin, says how much it has, and holds it."""

import select
import sys
import time

MIB = 1 << 20
STEPS = 10  # a second


def main() -> None:
    a_step = int(float(sys.argv[1]) * MIB / STEPS)
    held: list[bytearray] = []
    while not select.select([sys.stdin], [], [], 0)[0]:
        held.append(bytearray(b"\1") * a_step)  # every page is written
        time.sleep(1 / STEPS)
    print(len(held) * a_step, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
