"""Starts the node. A package, since multiprocessing would import a plain main module again for every job."""

from __future__ import annotations

import sys

from workers.__main__ import main
from workers.forks import STAGE_PROCESS

if __name__ == "__main__":
    sys.exit(main(entry="benchmarks.noop_node:run_stage", preload=(*STAGE_PROCESS, "benchmarks.noop_node")))
