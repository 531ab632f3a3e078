"""Advisory locks of devices, which processes of the host share; nothing but who asks for them heeds them.

Source: ``Util.lockDevice`` in the vendor's description of ``qaicrt``, and ``QMonitorNamedMutex`` of the open runtime
(quic/software-kit-for-qualcomm-cloud-ai-100), whose locks are POSIX record locks. So a lock belongs to the whole
process: taking it again succeeds and one release ends it, a release without it changes nothing, a forked child does not
have it, and the kernel drops it with the process. Standard library only.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from qeff_engine.simulated_sdk import occupancy
from qeff_engine.simulated_sdk.devices import Device

VARIABLE = "QAIC_SERIALIZE_DEVICE"
_LOCK_FILE = "advisory"

# Never closed: closing any descriptor of a file drops the process's record locks on it.
_descriptors: dict[Path, int] = {}


def enabled() -> bool:
    """Whether the variable is there; the open runtime does not look at its value."""
    return VARIABLE in os.environ


def take(root: Path, *, device: Device, wait: bool) -> bool:
    """Lock a device for this process; False when another has it and ``wait`` is not asked for.

    Raises:
        OSError: the SDK's state folder cannot be used.
    """
    descriptor = _descriptor(root, device=device)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False  # POSIX lets a kernel say either
    return True


def release(root: Path, *, device: Device) -> None:
    """Give a device's lock back, if this process has it.

    Raises:
        OSError: the SDK's state folder cannot be used.
    """
    fcntl.lockf(_descriptor(root, device=device), fcntl.LOCK_UN)


def _descriptor(root: Path, *, device: Device) -> int:
    path = occupancy.device_folder(root, device=device) / _LOCK_FILE
    if path not in _descriptors:
        path.parent.mkdir(parents=True, exist_ok=True)
        _descriptors[path] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    return _descriptors[path]
