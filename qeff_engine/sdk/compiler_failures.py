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


@dataclasses.dataclass(frozen=True)
class _Known:
    """A text that the compiler prints, what it means, and what can be done about it."""

    pattern: re.Pattern[str]
    kind: type[EngineError]
    advice: str


def _known(text: str, kind: type[EngineError], advice: str) -> _Known:
    return _Known(re.compile(text, re.IGNORECASE), kind, advice)


# First match wins. Only deterministic refusals of the graph may end as classes that are never retried.
_KNOWN = (
    _known(
        r"std::bad_alloc|cannot allocate memory|out of memory",
        HostOutOfMemory,
        "Compile on a host with more memory, or less at once; mxfp6 weights take less than fp16.",
    ),
    _known(
        r"no space left on device|disk quota exceeded",
        Infrastructure,
        "Free space on the disk that it writes to.",
    ),
    _known(
        r"permission denied|read-only file system",
        Infrastructure,
        "Let the user that compiles write to the path that the line names.",
    ),
    _known(
        r"error while loading shared libraries",
        Infrastructure,
        "The SDK is not complete on this host, or a package of the system is missing that it needs: install the "
        "library that the line names.",
    ),
    _known(r"input/output error", Infrastructure, "A disk of this host fails: see the kernel's log."),
    _known(
        r"unable to create .* directory",
        Infrastructure,
        "See to the directory that the line names: its disk, its owner, or a file in its place.",
    ),
    _known(
        r"invalid option",
        Unsupported,
        "The compiler of this SDK does not know the option: leave it out, or use an SDK that has it.",
    ),
    _known(
        r"json\.exception\.type_error",
        CompilerError,
        "A file beside the model has a form that this compiler does not read: named specializations need SDK 1.22 or "
        "newer. Check that the SDK's version file tells the version of its compiler.",
    ),
    _known(
        r"json\.exception",
        CompilerError,
        "A file beside the model (specializations, partition of devices) cannot be read as JSON: see what is in it.",
    ),
    _known(
        r"must be a constant tensor|non-constant \w+ tensor",
        Unsupported,
        "The exported graph computes what the compiler takes as a constant only, so no option helps: report the "
        "operator with the model's architecture.",
    ),
    _known(
        r"have different number of elements|must have same lengths?\b",
        CompilerError,
        "Shapes of the exported graph do not agree at this batch size, context length and prefill length: try others, "
        "and report the operator with them.",
    ),
    _known(
        r"not supported|unsupported|not implemented",
        Unsupported,
        "The compiler of this SDK cannot do what the line names: choose another option, or a newer SDK.",
    ),
    _known(
        r"\[operator-",
        CompilerError,
        "The compiler refuses this operator of the exported graph: report it with the model's architecture; another "
        "SDK may take it.",
    ),
)
_KILLED = "Compile on a host with more memory, or less at once; mxfp6 weights need less than fp16. See the kernel log."
_DIED = (
    "It is a fault of the compiler, not of the request: report it to its vendor with the log. Another number of cores, "
    "precision or SDK may avoid it."
)
_REFUSED = "The compiler refuses this graph with these options: change either, or the SDK."

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
    where = f"Its output is in {outcome.log_path}. Command: {shlex.join(outcome.command)}"
    number = _signal_of(outcome.exit_code)
    lines = [line for line in outcome.lines if "[warning]" not in line.lower()]
    text = telling_line(lines)
    if number == signal.SIGKILL:
        return HostOutOfMemory(
            "The compiler was killed (signal 9), as the kernel does when the host's memory is used up.",
            advice=f"{_KILLED} {where}",
        )
    if number is not None:
        said = f" Its last words: {text}" if text else ""
        message = f"The compiler died of signal {number} ({_name_of(number)}).{said}"
        return CompilerCrash(message, advice=f"{_DIED} {where}")
    if outcome.exit_code == 0:
        message = "The compiler ended with exit code 0 but left no programqpc.bin."
        return CompilerCrash(message, advice=f"{_DIED} {where}")
    known = next((one for one in _KNOWN if any(map(one.pattern.search, lines))), None)
    kind, advice = (CompilerError, _REFUSED) if known is None else (known.kind, known.advice)
    message = f"The compiler ended with exit code {outcome.exit_code}: {text or 'it said nothing'}"
    return kind(message, advice=f"{advice} {where}")


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
