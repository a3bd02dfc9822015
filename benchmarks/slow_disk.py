"""The daemon with a slow disk: `python -m benchmarks.slow_disk MILLISECONDS ...`, each commit takes so much longer."""

import sys
from functools import partial

from llmasos_edge.daemon import main, node
from llmasos_edge.services.journal import Journal

if __name__ == "__main__":
    delay_s = float(sys.argv.pop(1)) / 1000
    setattr(node, "Journal", partial(Journal, sync_delay_s=delay_s))  # noqa: B010 - the class that the node makes
    main()
