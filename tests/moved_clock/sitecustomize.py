"""The clock of a host that is set: by the seconds in the file ``QEFF_TEST_CLOCK``, while processes run.

Python imports this at the start of every process whose ``PYTHONPATH`` has this folder. What changes is what the kernel
would say: the time, and the time of the boot, which Linux counts from the time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

_FILE = Path(os.environ["QEFF_TEST_CLOCK"])
_now, _boot_time = time.time, psutil._pslinux.boot_time


def _moved_s() -> float:
    return float(_FILE.read_text())


time.time = lambda: _now() + _moved_s()
psutil._pslinux.boot_time = lambda: _boot_time() + _moved_s()
