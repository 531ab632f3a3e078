"""Starts the node."""

from __future__ import annotations

import sys

from benchmarks.bare_node import carry_out
from workers.__main__ import main

if __name__ == "__main__":
    sys.exit(main(carry_out=carry_out, preload=("workers.stage_process",)))
