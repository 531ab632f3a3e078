"""All processes of one tool: known by descent and by a mark in their environment, ended together.

The tool stays in its caller's process group, so that whoever kills that group kills the tool too. So the group does not
tell its processes from the caller, and descent loses those whose parent has ended; both together lose only a process
that has neither a living parent nor its environment left.
"""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress

import psutil

from qeff_engine.errors import Infrastructure

_VARIABLE = "QEFF_TOOL_MARK"
_POLL_S = 0.02
_LIMIT_S = 30.0  # a process that is in the kernel for longer does not end at all


class ProcessTree:
    """The processes of one tool.

    Attributes:
        environ: the environment to start it with.
    """

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self.environ = {**os.environ, _VARIABLE: self._mark}

    def members(self) -> list[psutil.Process]:
        """Its processes that have not ended, of this user; a zombie has ended."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            if process.pid in found:
                continue
            with suppress(psutil.Error, OSError):
                if process.environ().get(_VARIABLE) == self._mark:
                    for one in (process, *process.children(recursive=True)):
                        found[one.pid] = one
        return [process for process in found.values() if _lives(process)]

    def kill(self) -> None:
        """End all of them by SIGKILL, which nobody can ignore, until none is left.

        Raises:
            Infrastructure: one does not end, as a process that waits for a broken disk.
        """
        deadline_s = time.monotonic() + _LIMIT_S
        while members := self.members():
            for process in members:
                with suppress(psutil.Error):
                    process.kill()
            if time.monotonic() > deadline_s:
                pids = ", ".join(str(process.pid) for process in members)
                raise Infrastructure(f"Processes {pids} of the compiler do not end.", advice="See the kernel's log.")
            time.sleep(_POLL_S)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
