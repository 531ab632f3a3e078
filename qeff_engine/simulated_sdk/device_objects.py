"""Devices in the runtime's surface: lists of QIDs, contexts, and what is free."""

from __future__ import annotations

import dataclasses

from qeff_engine.simulated_sdk import device_locks, occupancy, runtime_log, sdk_root
from qeff_engine.simulated_sdk import devices as device_list
from qeff_engine.simulated_sdk.status import QDevStatus, QStatus


class QIDList(list[int]):
    """Numbers of devices."""


class Context:
    """A set of devices that programs may use: those given, or all that are visible."""

    def __init__(self, qids: QIDList | list[int] | None = None) -> None:
        """Check that the devices exist.

        Raises:
            RuntimeError: one does not, or no device is visible.
        """
        self.devices = sdk_root.visible_devices()
        self.qids = [int(qid) for qid in qids] if qids else sorted(self.devices)
        for qid in self.qids:
            self.device(qid)
        if not self.qids:
            raise RuntimeError("No device found")

    def device(self, qid: int) -> device_list.Device:
        """A visible device by its number.

        Raises:
            RuntimeError: there is no such device.
        """
        if qid not in self.devices:
            runtime_log.error("[QRuntime][getDevice:#88]", message=f"Invalid device:{qid}")
            raise RuntimeError(f"Invalid device:{qid}")
        return self.devices[qid].device

    def setLogLevel(self, level: int) -> QStatus:
        """Print messages from this weight on."""
        try:
            runtime_log.set_level(level)
        except ValueError:
            return QStatus.QS_INVAL
        return QStatus.QS_SUCCESS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResourceInfo:
    """Totals of a device and what of them is free; memory in MB."""

    dramTotal: int = 0
    dramFree: int = 0
    nspTotal: int = 0
    nspFree: int = 0
    vcTotal: int = 0
    vcFree: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerformanceInfo:
    """Frequencies of a device and the traffic of its memory; 0 where the simulation knows nothing."""

    nspFrequencyHz: int = 0
    ddrFrequencyHz: int = 0
    compFrequencyHz: int = 0
    memFrequencyHz: int = 0
    sysFrequencyHz: int = 0
    peakCompute: float = 0.0
    dramBw: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceData:
    """What a ready device says of itself."""

    resourceInfo: ResourceInfo = ResourceInfo()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """A device and its state."""

    qid: int
    devStatus: QDevStatus
    devData: DeviceData = DeviceData()


class Util:
    """Queries that need no context."""

    def getDeviceIds(self) -> tuple[QStatus, QIDList]:
        """The visible devices."""
        return QStatus.QS_SUCCESS, QIDList(sorted(sdk_root.visible_devices()))

    def getDeviceInfo(self, qid: int) -> tuple[QStatus, DeviceInfo]:
        """State of a device and what is free on it."""
        status, resources = self.getResourceInfo(qid)
        if status != QStatus.QS_SUCCESS:
            return status, DeviceInfo(qid=qid, devStatus=QDevStatus.QDS_ERROR)
        info = DeviceInfo(qid=qid, devStatus=QDevStatus.QDS_READY, devData=DeviceData(resourceInfo=resources))
        return QStatus.QS_SUCCESS, info

    def getResourceInfo(self, qid: int) -> tuple[QStatus, ResourceInfo]:
        """What is free on a device."""
        found = sdk_root.visible_devices().get(qid)
        if found is None:
            return QStatus.QS_NODEV, ResourceInfo()
        if found.ill is not None:
            return QStatus.QS_DEV_ERROR, ResourceInfo()
        device = found.device
        try:
            taken = occupancy.usage(sdk_root.root(), device=device).taken
        except OSError:
            return QStatus.QS_PERM, ResourceInfo()
        resources = ResourceInfo(
            dramTotal=device.traits.dram_mb,
            dramFree=device.usable_dram_mb - taken.dram_mb,
            nspTotal=device.traits.cores,
            nspFree=device.traits.cores - taken.cores,
            vcTotal=device_list.VIRTUAL_CHANNELS,
            vcFree=device_list.VIRTUAL_CHANNELS - taken.channels,
        )
        return QStatus.QS_SUCCESS, resources

    def getPerformanceInfo(self, qid: int) -> tuple[QStatus, PerformanceInfo]:
        """Frequencies of a device."""
        status, _ = self.getResourceInfo(qid)
        if status != QStatus.QS_SUCCESS:
            return status, PerformanceInfo()
        found = sdk_root.visible_devices()[qid]
        kind, clock = found.device.traits, found.hot.parameters["clock"] if found.hot is not None else 1.0
        return status, PerformanceInfo(
            nspFrequencyHz=round(kind.clock_ghz * clock * 1e9), peakCompute=kind.fp16_tflops * 1e12
        )

    def lockDevice(self, devID: int, lock: bool, block: bool) -> QStatus:
        """Take or give back the advisory lock of a device, see :mod:`~qeff_engine.simulated_sdk.device_locks`.

        Args:
            devID: number of the device.
            lock: take it; otherwise give it back.
            block: wait for a process that has it, instead of answering BUSY.
        """
        found = sdk_root.visible_devices().get(devID)
        if found is None:
            return QStatus.QS_NODEV
        if not device_locks.enabled():
            return QStatus.QS_UNSUPPORTED
        try:
            if not lock:
                device_locks.release(sdk_root.root(), device=found.device)
            elif not device_locks.take(sdk_root.root(), device=found.device, wait=block):
                return QStatus.QS_BUSY
        except OSError as error:
            runtime_log.error("[QDevice][lock:#64]", message=f"Device {devID} lock failed: {error.strerror}")
            return QStatus.QS_ERROR
        return QStatus.QS_SUCCESS
