"""A program that joins a control group, then becomes another: `python -m benchmarks.in_group GROUP MODULE [ARG...]`."""

import os
import sys
from pathlib import Path


def main() -> None:
    group, module, *arguments = sys.argv[1:]
    (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


if __name__ == "__main__":
    main()
