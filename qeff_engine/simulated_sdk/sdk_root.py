"""Which SDK this process's runtime belongs to, and the devices that it may see. Standard library only."""

from __future__ import annotations

from pathlib import Path

from qeff_engine.simulated_sdk import device_faults
from qeff_engine.simulated_sdk.devices import Found
from qeff_engine.simulated_sdk.fault_kinds import RUNTIME

_root: Path | None = None


def bind(root: Path) -> None:
    """Say which SDK the runtime belongs to; its ``qaicrt`` module does so when it is imported."""
    global _root
    _root = root


def root() -> Path:
    """The SDK's directory.

    Raises:
        RuntimeError: the runtime was not imported from an SDK.
    """
    if _root is None:
        raise RuntimeError("The simulated runtime belongs to no SDK: import qaicrt from an installed one.")
    return _root


def visible_devices() -> dict[int, Found]:
    """The devices that are there and that ``QAIC_VISIBLE_DEVICES`` leaves, by QID."""
    return {found.device.qid: found for found in device_faults.present(root(), tool=RUNTIME)}
