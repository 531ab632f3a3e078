"""Imported first by the fork server: ties it to its node, so that a killed node leaves no server behind.

The import has this effect, since modules to import are all that a fork server can be told.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # the node died before the call
        os._exit(1)
