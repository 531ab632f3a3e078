"""What the end of a compiler run means. Pure: exit code and text in, error out.

The texts are those that the compiler has been seen to print; it has no machine-readable form of a failure.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import signal
from pathlib import Path

from qeff_engine.errors import (
    CompilerCrash,
    CompilerError,
    EngineError,
    HostOutOfMemory,
    Infrastructure,
    Unsupported,
)

# First match wins. Only deterministic refusals of the graph may end as classes that are never retried.
_CLASS_BY_TEXT: tuple[tuple[re.Pattern[str], type[EngineError]], ...] = (
    (re.compile(r"std::bad_alloc|cannot allocate memory|out of memory", re.IGNORECASE), HostOutOfMemory),
    (
        re.compile(
            r"unable to create .* directory|no space left on device|permission denied|read-only file system"
            r"|error while loading shared libraries|disk quota exceeded|input/output error",
            re.IGNORECASE,
        ),
        Infrastructure,
    ),
    (re.compile(r"invalid option", re.IGNORECASE), Unsupported),
    (re.compile(r"not supported|unsupported|not implemented", re.IGNORECASE), Unsupported),
)

# The line that names the fault, best first.
_TELLING_LINES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"error message:\s*\S",
        r"\[operator-",
        r"invalid option",
        r"json\.exception",
        r"qaic_error:?\s*\S",
        r"error|failed|unable|cannot|bad_alloc",
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a compiler run ended.

    Attributes:
        command: what was run.
        exit_code: as :mod:`subprocess` counts it: negative for a signal.
        lines: everything it printed.
        has_program: it left a program.
        log_path: where its output is.
    """

    command: list[str]
    exit_code: int
    lines: list[str]
    has_program: bool
    log_path: Path


def failure(outcome: Outcome) -> EngineError | None:
    """The error of a run that failed, or None for a run that left a program and ended with 0."""
    if outcome.exit_code == 0 and outcome.has_program:
        return None
    advice = f"Its output is in {outcome.log_path}. Command: {shlex.join(outcome.command)}"
    number = _signal_of(outcome.exit_code)
    lines = [line for line in outcome.lines if "[warning]" not in line.lower()]
    text = telling_line(lines)
    if number == signal.SIGKILL:
        return HostOutOfMemory(
            "The compiler was killed (signal 9), as the kernel does when the host's memory is used up.", advice=advice
        )
    if number is not None:
        said = f" Its last words: {text}" if text else ""
        return CompilerCrash(f"The compiler died of signal {number} ({_name_of(number)}).{said}", advice=advice)
    if outcome.exit_code == 0:
        return CompilerCrash("The compiler ended with exit code 0 but left no programqpc.bin.", advice=advice)
    kind = next((kind for pattern, kind in _CLASS_BY_TEXT if any(map(pattern.search, lines))), CompilerError)
    return kind(f"The compiler ended with exit code {outcome.exit_code}: {text or 'it said nothing'}", advice=advice)


def telling_line(lines: list[str]) -> str:
    """The one line that names the fault, without its prefix; the last line when none looks like a fault."""
    spoken = [line.strip() for line in lines if line.strip()]
    for pattern in _TELLING_LINES:
        for line in spoken:
            if pattern.search(line):
                return re.sub(r"^(QAIC_ERROR:\s*|Error message:\s*)+", "", line)
    return spoken[-1] if spoken else ""


def _signal_of(exit_code: int) -> int | None:
    """The signal that ended a process; a shell reports it as 128 + number."""
    if exit_code < 0:
        return -exit_code
    return exit_code - 128 if exit_code - 128 in signal.valid_signals() and exit_code - 128 <= signal.SIGTERM else None


def _name_of(number: int) -> str:
    return signal.Signals(number).name if number in signal.valid_signals() else "unknown"
