"""What faults that were asked for do to devices, as tools and runtime see them. Standard library only."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from qeff_engine.simulated_sdk import devices as device_list
from qeff_engine.simulated_sdk import faults
from qeff_engine.simulated_sdk.devices import Device, Found
from qeff_engine.simulated_sdk.fault_kinds import ACTIVATION_CODES, RUNTIME
from qeff_engine.simulated_sdk.faults import Fault
from qeff_engine.simulated_sdk.status import QStatus

_STATES = ("device-error", "device-permission", "device-missing", "device-moved", "device-throttled")
_ILL = ("device-error", "device-permission")
_CALLS = ("device-ssr", "device-timeout", "wrong-numbers", "device-slow", "device-throttled")


def present(root: Path, *, tool: str, environ: Mapping[str, str] | None = None) -> list[Found]:
    """The devices that a tool finds now and that its process may see, by number.

    Raises:
        BadDevices: the SDK's list of devices is damaged, or the faults cannot be understood.
        OSError: the SDK's state folder cannot be used.
    """
    installed = device_list.load(root)
    try:
        found = _disturbed(root, installed, tool=tool) if faults.asked_for(root) else _plain(installed)
    except faults.BadFaults as error:
        raise device_list.BadDevices(str(error)) from error
    seen = {device.pci_address for device in device_list.visible([one.device for one in found], environ=environ)}
    return sorted((one for one in found if one.device.pci_address in seen), key=lambda one: one.device.qid)


def _plain(installed: Sequence[Device]) -> list[Found]:
    return [Found(device=device) for device in installed]


def _disturbed(root: Path, installed: Sequence[Device], *, tool: str) -> list[Found]:
    states = {
        device.pci_address: {
            fault.kind: fault for fault in faults.occurring(root, tool=tool, kinds=_STATES, device=device)
        }
        for device in installed
    }
    gone = [state["device-missing"] for state in states.values() if "device-missing" in state]
    left = [device for device in installed if "device-missing" not in states[device.pci_address]]
    numbers = {device.pci_address: device.qid for device in left}
    if any(fault.parameters["renumber"] for fault in gone):
        numbers = {device.pci_address: number for number, device in enumerate(left)}
    for device in left:
        moved = states[device.pci_address].get("device-moved")
        if moved is not None:
            _swap(numbers, address=device.pci_address, qid=int(moved.parameters["qid"]))
    return [
        Found(
            device=dataclasses.replace(device, qid=numbers[device.pci_address]),
            ill=next((states[device.pci_address][kind] for kind in _ILL if kind in states[device.pci_address]), None),
            hot=states[device.pci_address].get("device-throttled"),
        )
        for device in left
    ]


def _swap(numbers: dict[str, int], *, address: str, qid: int) -> None:
    other = next((one for one, number in numbers.items() if number == qid), None)
    if other is not None:
        numbers[other] = numbers[address]
    numbers[address] = qid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failed:
    """How the runtime answers in place of doing what it was asked.

    Attributes:
        device: that it is about.
        status: the answer.
        reason: what is printed about it.
    """

    device: Device
    status: QStatus
    reason: str


def state_failure(root: Path, devices: Sequence[Device]) -> Failed | None:
    """Why a program cannot be on its devices any more, if one is gone or ill."""
    now = {found.device.pci_address: found for found in present(root, tool=RUNTIME, environ={})}
    for device in devices:
        found = now.get(device.pci_address)
        if found is None:
            return Failed(device=device, status=QStatus.QS_NODEV, reason=f"Invalid device:{device.qid}")
        if found.ill is not None and found.ill.kind == "device-permission":
            return Failed(device=device, status=QStatus.QS_PERM, reason="Permission denied")
        if found.ill is not None:
            reason = f"Device:{device.qid} not in ready state"
            return Failed(device=device, status=QStatus.QS_DEV_ERROR, reason=reason)
    return None


def activation_failure(root: Path, devices: Sequence[Device], *, model: str) -> Failed | None:
    """Why an activation is refused, if a fault wants that."""
    failed = state_failure(root, devices)
    if failed is not None:
        return failed
    for device, fault in _occurring(root, devices, kinds=("activation-refused",), model=model):
        reason = ACTIVATION_CODES[fault.parameters["code"]]
        return Failed(device=device, status=QStatus.QS_DEV_ERROR, reason=reason)
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disturbance:
    """What faults do to one call of a program.

    Attributes:
        failed: it is not computed, and this is the answer.
        restarts: the program is not active any more.
        wrong: the fault by which its outputs are wrong.
        factor: how many times as long it takes.
    """

    failed: Failed | None = None
    restarts: bool = False
    wrong: Fault | None = None
    factor: float = 1.0


_NONE = Disturbance()


def of_call(root: Path, devices: Sequence[Device], *, model: str) -> Disturbance:
    """What happens to a call; waits where a fault lets it wait. Faults that cannot be understood fail it."""
    try:
        return _of_call(root, devices, model=model) if faults.asked_for(root) else _NONE
    except (ValueError, OSError) as error:
        return Disturbance(failed=Failed(device=devices[0], status=QStatus.QS_ERROR, reason=str(error)))


def _of_call(root: Path, devices: Sequence[Device], *, model: str) -> Disturbance:
    failed = state_failure(root, devices)
    if failed is not None:
        return Disturbance(failed=failed, restarts=True)
    wrong, factor = None, 1.0
    for device, fault in _occurring(root, devices, kinds=_CALLS, model=model):
        if fault.kind == "device-ssr":
            reason = "NSP under SSR: the inputs of the call are lost, activate again"
            return Disturbance(failed=Failed(device=device, status=QStatus.QS_DEV_ERROR, reason=reason), restarts=True)
        if fault.kind == "device-timeout":
            time.sleep(fault.parameters["seconds"])
            reason = "IOCTL: Connection timed out ERROR"
            return Disturbance(failed=Failed(device=device, status=QStatus.QS_TIMEDOUT, reason=reason))
        if fault.kind == "wrong-numbers":
            wrong = fault
        elif fault.kind == "device-slow":
            factor = max(factor, fault.parameters["factor"])
        else:
            factor = max(factor, 1.0 / fault.parameters["clock"])
    return Disturbance(wrong=wrong, factor=factor)


def _occurring(
    root: Path, devices: Sequence[Device], *, kinds: tuple[str, ...], model: str
) -> list[tuple[Device, Fault]]:
    if not faults.asked_for(root):
        return []
    # Faults name devices by the numbers with which they were installed, whatever those are now.
    installed = {device.pci_address: device for device in device_list.load(root)}
    return [
        (device, fault)
        for device in devices
        if device.pci_address in installed
        for fault in faults.occurring(
            root, tool=RUNTIME, kinds=kinds, device=installed[device.pci_address], model=model
        )
    ]
