"""What a failed call of the runtime means. Pure: status and text in, error out.

Texts and status numbers: the runtime's public source and reports of users; activation answers with a general status
and says the reason only in its log.
"""

from __future__ import annotations

import re
from typing import Any

from qeff_engine.errors import DeviceLost, DeviceOutOfMemory, EngineError, Infrastructure, InvalidInput

_CLASS_BY_TEXT: tuple[tuple[re.Pattern[str], type[EngineError], str], ...] = (
    (
        re.compile(r"memory resource exhausted|failed to allocate .*memory", re.IGNORECASE),
        DeviceOutOfMemory,
        "Use mxfp6 weights or mxint8 KV, a shorter context, a smaller batch or more devices.",
    ),
    (
        re.compile(
            r"failed to allocate nsp|nsp_alloc_failed|virtual channel|multicast id|semaphore|reservation id",
            re.IGNORECASE,
        ),
        DeviceLost,
        "Cores or channels of the device are held by another program; try again when it has ended.",
    ),
    (
        re.compile(r"nsp response|under ssr|timed out|not in ready state|invalid device", re.IGNORECASE),
        DeviceLost,
        "The device does not answer; check `qaic-util -q` before using it again.",
    ),
    (
        re.compile(r"permission denied", re.IGNORECASE),
        DeviceLost,
        "This user may not open the device: add it to the group qaic, or see who owns /dev/accel.",
    ),
    (
        re.compile(r"version mismatch|elf metadata|invalid qpc|create (program|qpc)", re.IGNORECASE),
        InvalidInput,
        "Compile the program again with this SDK.",
    ),
)
_CLASS_BY_STATUS: dict[int, type[EngineError]] = {
    2: DeviceLost,  # AGAIN
    3: DeviceOutOfMemory,  # NOMEM
    4: DeviceLost,  # BUSY
    5: DeviceLost,  # NODEV
    7: DeviceOutOfMemory,  # NOSPC
    9: DeviceLost,  # TIMEDOUT
    300: DeviceLost,  # DEV_ERROR
}


def failure(step: str, *, status: object, text: str = "", default: type[EngineError] = Infrastructure) -> EngineError:
    """The error of a runtime call that failed.

    Args:
        step: what was tried, such as ``activate the program on device 0``.
        status: status that the call returned, or what it raised.
        text: what the runtime printed during the call.
        default: class of a failure that neither text nor status explains.
    """
    said = " ".join(line.strip() for line in text.splitlines() if line.strip())
    reason = str(status) if isinstance(status, Exception) else f"status {_number(status)}"
    message = f"The runtime could not {step}: {reason}{f', {said}' if said else ''}."
    for pattern, kind, advice in _CLASS_BY_TEXT:
        if pattern.search(f"{status} {text}"):
            return kind(message, advice=advice)
    return _CLASS_BY_STATUS.get(_number(status), default)(message)


def _number(status: object) -> int:
    """A status as a number; 500 (general error) for anything else."""
    try:
        number: Any = getattr(status, "value", status)
        return int(number)
    except (TypeError, ValueError):
        return 500
