"""Starts the node. A package, since multiprocessing would import a plain main module again for every job."""

from __future__ import annotations

import sys

from workers.__main__ import main

if __name__ == "__main__":
    entry = "benchmarks.stubborn_node:run_stage"
    sys.exit(main(entry=entry, preload=("workers.stage_process", "benchmarks.stubborn_node")))
