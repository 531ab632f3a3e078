"""Starts the node, with far more slots than processors: what it carries out needs none."""

from __future__ import annotations

import sys

from benchmarks.bare_node import NUM_SLOTS, carry_out
from workers.__main__ import main
from workers.forks import STAGE_PROCESS

if __name__ == "__main__":
    slots = [] if "devices" in sys.argv else ["--slots", str(NUM_SLOTS)]
    sys.exit(main([*sys.argv[1:], *slots], carry_out=carry_out, preload=STAGE_PROCESS))
