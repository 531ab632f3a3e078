"""Keeps the logs of the farm's own processes from filling the disk."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path


def cap(directory: Path, *, limit_bytes: int) -> None:
    """Put what is in a log above ``limit_bytes`` aside as ``NAME.log.1``, in place of what was put there before.

    The file itself is copied and emptied, since processes go on writing to it; they open it for appending. A line that
    comes between the copy and the emptying is lost. So is everything when there is no room for a copy.
    """
    for log in directory.glob("*.log"):
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size > limit_bytes:
                with contextlib.suppress(OSError):
                    shutil.copyfile(log, log.with_name(f"{log.name}.1"))
                os.truncate(log, 0)
