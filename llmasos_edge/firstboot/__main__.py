"""`python -m llmasos_edge.firstboot`: run once by systemd, and again when a file on the boot partition has changed."""

import logging
import os
import sys
from pathlib import Path

from llmasos_edge.firstboot.machine import Machine
from llmasos_edge.firstboot.setup import set_up

logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO)
state = Path(os.environ.get("STATE_DIRECTORY", "/var/lib/llmasos-firstboot"))
set_up(Machine(Path("/"), Path("/boot/firmware"), state), Path("/dev/disk/by-label/llmasos-data"))
