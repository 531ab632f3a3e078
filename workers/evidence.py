"""What an attempt's log tells of its failure: the one line that matters, and the class of an end that named none.

Two tables of patterns; pure. Texts are those of Python, the C++ runtime, torch, the kernel, Qualcomm's compiler and its
runtime as they have been seen to print them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from qeff_engine.errors import FailureClass

_NUM_LAST_LINES = 40  # what is further above has seldom ended anything
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_NOISE = re.compile(r"\[warning\]|\bwarning:|^\s*(?:\^+|~+)\s*$", re.IGNORECASE)

_NO_MEMORY = (
    r"can't allocate memory|cannot allocate memory|std::bad_alloc|^MemoryError\b|: MemoryError\b"
    r"|unable to allocate .+ for an array|failed to allocate memory|out of memory"
)
_NO_DISK = r"no space left on device|disk quota exceeded|read-only file system|input/output error|file too large"
_NO_NETWORK = (
    r"\b(?:ConnectionError|ConnectTimeout|ReadTimeout|NameResolutionError|SSLError|ProxyError|ConnectionResetError"
    r"|ConnectionRefusedError|LocalEntryNotFoundError)\b|temporary failure in name resolution|max retries exceeded"
)


def _compiled(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


# What ended a process that could not say so itself, or took it for a mistake of ours. The first that matches counts.
_CLASS_BY_TEXT: tuple[tuple[FailureClass, re.Pattern[str]], ...] = tuple(
    (failure_class, re.compile(pattern, re.IGNORECASE))
    for failure_class, pattern in (
        (FailureClass.OUT_OF_MEMORY_HOST, _NO_MEMORY),
        (FailureClass.INFRASTRUCTURE, _NO_DISK),
        (FailureClass.INFRASTRUCTURE, r"too many open files"),
        (FailureClass.INFRASTRUCTURE, _NO_NETWORK),
    )
)

_COMPILER = _compiled(
    r"error message:\s*\S",
    r"\[operator-",
    r"invalid option",
    r"json\.exception",
    r"\bqaic_error:?\s*\S",
    r"not supported|unsupported|not implemented",
    r"\b(?:error|failed|unable|cannot)\b",
)
_EXCEPTION = _compiled(
    r"^(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Refused|Fault)\b",
    r"^fatal python error",
    r"terminate called|what\(\):|assertion .* failed|segmentation fault|aborted|core dumped",
)
# The line that matters, best first, and of several the last one.
_LINES: Mapping[FailureClass, tuple[re.Pattern[str], ...]] = {
    FailureClass.COMPILER_ERROR: _COMPILER,
    FailureClass.COMPILER_CRASH: (
        *_compiled(r"terminate called|what\(\):|assertion|bad_alloc|stack dump|fatal"),
        *_COMPILER,
    ),
    FailureClass.UNSUPPORTED: _COMPILER,
    FailureClass.INVALID_INPUT: _compiled(r"json\.exception", r"no such file or directory") + _EXCEPTION,
    FailureClass.OUT_OF_MEMORY_HOST: _compiled(_NO_MEMORY, r"\bkilled\b"),
    FailureClass.OUT_OF_MEMORY_DEVICE: _compiled(r"memory resource exhausted|failed to allocate .*memory|\bNOMEM\b"),
    FailureClass.DEVICE_LOST: _compiled(
        r"failed to allocate nsp|nsp_alloc_failed|nsp response|under ssr|not in ready state|invalid device",
        r"virtual channel|multicast id|semaphore|reservation id",
        r"timed out|ioctl|dev_error",
    ),
    FailureClass.INFRASTRUCTURE: _compiled(
        _NO_DISK, r"permission denied|unable to create .* directory|shared librar", _NO_NETWORK
    ),
    FailureClass.NUMERICS: _compiled(r"\bnan\b|not finite|\binf\b|differ"),
    FailureClass.BUG: _EXCEPTION,
}


def class_of(text: str) -> FailureClass | None:
    """The class that the end of a log, or a message, tells; None when it tells none."""
    end = "\n".join(_lines(text)[-_NUM_LAST_LINES:])
    return next((failure_class for failure_class, pattern in _CLASS_BY_TEXT if pattern.search(end)), None)


def decisive_line(failure_class: FailureClass, log: str) -> str:
    """The line of a log that explains a failure of a class: without colours, not a warning; empty when none does."""
    lines = [line for line in _lines(log) if not _NOISE.search(line)]
    for pattern in _LINES.get(failure_class, ()):
        for line in reversed(lines):
            if pattern.search(line):
                return line
    return ""


def last_line(log: str) -> str:
    """The last words of a process; empty when it said nothing."""
    lines = _lines(log)
    return lines[-1] if lines else ""


def _lines(text: str) -> Sequence[str]:
    """The lines that are not empty, without colours."""
    return [line.strip() for line in _ESCAPES.sub("", text).splitlines() if line.strip()]
