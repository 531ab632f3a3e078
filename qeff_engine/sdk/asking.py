"""Calls a tool of the SDK for its answer, which is short and which nobody watches. Standard library only."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
from collections.abc import Sequence

from qeff_engine.errors import Infrastructure

_KILL_LIMIT_S = 5.0


class NoAnswer(Infrastructure):
    """A tool did not end in time, and was killed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """How a tool ended.

    Attributes:
        exit_code: negative for the signal that ended it.
        text: all that it printed, on either stream.
    """

    exit_code: int
    text: str

    @property
    def last_line(self) -> str:
        """See :func:`last_line`."""
        return last_line(self.text)


def last_line(text: str) -> str:
    """The last line with something in it, stripped; empty when there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def ask(command: Sequence[str], *, limit_s: float | None, apart: bool = False) -> Answer:
    """Run a tool to its end.

    Args:
        command: the tool and its arguments.
        limit_s: seconds that it may take; None where somebody else sees to it.
        apart: start it in a session of its own, so that its children are killed with it when it takes too long. Not in
            a stage, whose process group is what a cancellation kills.

    Raises:
        Infrastructure: it cannot be started.
        NoAnswer: it took too long.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=apart,
        )
    except OSError as error:
        raise Infrastructure(f"{command[0]} could not be started: {error}.") from error
    try:
        text, _ = process.communicate(timeout=limit_s)
    except BaseException as error:
        _end(process, apart=apart)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise NoAnswer(
            f"{command[0]} did not answer within {limit_s:g} s.", advice="A device may hang; see the kernel's log."
        ) from error
    return Answer(exit_code=process.returncode, text=text)


def _end(process: subprocess.Popen[str], *, apart: bool) -> None:
    """Kill a tool; one that hangs in the driver cannot be killed and is left behind."""
    with contextlib.suppress(ProcessLookupError):
        if apart:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    if process.stdout is not None:
        process.stdout.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_LIMIT_S)
