"""How an attempt ended, and what a stage process's end means. Pure."""

from __future__ import annotations

import dataclasses
import enum
import signal
from collections.abc import Mapping
from typing import Any

from farm.records import ArtifactRecord
from qeff_engine.errors import FailureClass
from workers import evidence

# Signals that a process earns by what it does itself.
_OWN_FAULTS = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP}
)


class Ending(enum.StrEnum):
    """The ways in which an attempt can end."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"  # a user asked for it
    INTERRUPTED = "interrupted"  # the node is shutting down
    LOST = "lost"  # the lease is not ours any more: nothing may be written but that the process is gone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        ending: which way.
        message: for people.
        failure_class: of a failure.
        line: the line of the log that matters for it; empty when none does.
        advice: what to do about it; empty for what its class says.
        damaged: digest of the input that it failed for, whose bytes are not what was published.
        silent: the process ended without a word.
        artifact, figures: of a success.
        exit_code: of the stage process, negative for a signal; None when it was never started.
        cpu_s, peak_rss_bytes: what it used, as it said itself or as was last seen.
    """

    ending: Ending
    message: str = ""
    failure_class: FailureClass | None = None
    line: str = ""
    advice: str = ""
    damaged: str = ""
    silent: bool = False
    artifact: ArtifactRecord | None = None
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    exit_code: int | None = None
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0


def failed(failure_class: FailureClass, message: str, *, exit_code: int | None = None) -> Outcome:
    """The outcome of a failure."""
    return Outcome(ending=Ending.FAILED, failure_class=failure_class, message=message, exit_code=exit_code)


def of_process(said: Mapping[str, Any] | None, *, exit_code: int, out_of_memory: bool, excess: str = "") -> Outcome:
    """The outcome of a stage process that ended without being asked to.

    Args:
        said: its last line, see :mod:`workers.stage_process`; None when it said nothing.
        exit_code: negative for a signal.
        excess: why the node killed it for the memory that it held; empty when it did not.
        out_of_memory: the kernel killed processes for want of memory meanwhile.
    """
    if said is not None and "artifact" in said:
        artifact = ArtifactRecord(**said["artifact"])
        return Outcome(ending=Ending.SUCCEEDED, artifact=artifact, figures=said["figures"], exit_code=exit_code)
    if said is not None:
        found = failed(FailureClass(said["failure_class"]), said["message"], exit_code=exit_code)
        return dataclasses.replace(found, advice=said.get("advice", ""), damaged=said.get("damaged", ""))
    found = _of_silence(exit_code=exit_code, out_of_memory=out_of_memory, excess=excess)
    return dataclasses.replace(found, silent=True)


def with_log(found: Outcome, log: str) -> Outcome:
    """A failure with the line of the log that matters, and with the class that the log tells when nobody told one."""
    if found.ending is not Ending.FAILED or found.failure_class is None:
        return found
    failure_class = found.failure_class
    if failure_class is FailureClass.BUG:
        failure_class = evidence.class_of(f"{log}\n{found.message}") or failure_class
    line = evidence.decisive_line(failure_class, log)
    if not line and (found.silent or failure_class is FailureClass.TIMEOUT):
        line = evidence.last_line(log)
    return dataclasses.replace(found, failure_class=failure_class, line=line)


def _of_silence(*, exit_code: int, out_of_memory: bool, excess: str) -> Outcome:
    """The outcome of a stage process that ended without a word."""
    if excess:
        return failed(FailureClass.OUT_OF_MEMORY_HOST, excess, exit_code=exit_code)
    if exit_code >= 0:
        message = f"The stage process ended with exit code {exit_code} without a word. Its log may say why."
        return failed(FailureClass.BUG, message, exit_code=exit_code)
    if -exit_code == signal.SIGXCPU:
        message = "The kernel ended the stage process: it computed for longer than its running limit allows."
        return failed(FailureClass.TIMEOUT, message, exit_code=exit_code)
    name = _signal_name(-exit_code)
    if -exit_code in _OWN_FAULTS:
        message = f"The stage process crashed with {name}. The end of its log shows where."
        return failed(FailureClass.BUG, message, exit_code=exit_code)
    if -exit_code == signal.SIGKILL and out_of_memory:
        message = "The kernel killed the stage process because the host ran out of memory."
        return failed(FailureClass.OUT_OF_MEMORY_HOST, message, exit_code=exit_code)
    return failed(FailureClass.WORKER_LOST, f"The stage process was killed with {name}.", exit_code=exit_code)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
