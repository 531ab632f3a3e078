"""A node whose stages are :mod:`tests.small_stages`: ``python -m tests.small_node host``.

A package, since multiprocessing would import a plain main module again in every process that it starts.
"""

from __future__ import annotations

import sys

from workers.__main__ import main
from workers.forks import STAGE_PROCESS

if __name__ == "__main__":
    sys.exit(main(entry="tests.small_stages:run_stage", preload=(*STAGE_PROCESS, "tests.small_stages")))
