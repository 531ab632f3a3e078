"""What this host has: processors, memory, devices, versions. Nothing heavy is imported to find out."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from farm.errors import NotFound
from farm.records import DeviceRecord
from qeff_engine import toolchain
from qeff_engine.errors import Infrastructure
from qeff_engine.sdk import devices, location
from workers import memory

_logger = logging.getLogger(__name__)
_RAM_OF_SLOT_BYTES = 4 << 30  # what a stage without a device should find


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostFacts:
    """A host as it is registered.

    Attributes:
        num_cpus: processors that this process may use.
        ram_bytes: memory that processes of it may have altogether.
        num_slots: stages without a device that run at the same time.
        toolchain: version by name.
    """

    num_cpus: int
    ram_bytes: int
    num_slots: int
    toolchain: Mapping[str, str]


def host_facts(sdk: location.Sdk | None, *, num_slots: int | None = None) -> HostFacts:
    """The facts of this host; as many slots as processors and memory allow unless told."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ram_bytes = memory.look().total_bytes
    return HostFacts(
        num_cpus=num_cpus,
        ram_bytes=ram_bytes,
        num_slots=num_slots or max(1, min(num_cpus, ram_bytes // _RAM_OF_SLOT_BYTES)),
        toolchain=toolchain.versions(sdk),
    )


def find_sdk(root: Path | None) -> location.Sdk | None:
    """The SDK at ``root``, or the one at the default place, or None: a host may do without.

    Raises:
        Infrastructure: ``root`` was given and is no SDK.
    """
    try:
        return location.find(root)
    except Infrastructure:
        if root is not None:
            raise
        return None


def all_devices(sdk: location.Sdk | None) -> list[devices.Device]:
    """The devices of this host by number, also those that are not ready."""
    return devices.discover(sdk) if sdk is not None else []


def ready_devices(sdk: location.Sdk | None) -> list[devices.Device]:
    """The devices of this host that can be used now, by number."""
    return [device for device in all_devices(sdk) if device.ready]


def device(sdk: location.Sdk | None, *, qid: int) -> devices.Device:
    """A device of this host.

    Raises:
        NotFound: there is none of this number, or it is not ready.
    """
    found = {device.qid: device for device in ready_devices(sdk)}
    if qid not in found:
        known = ", ".join(map(str, found)) or "none"
        raise NotFound(f"This host has no ready device {qid}, expected one of: {known}. See `qaic-util -q`.")
    return found[qid]


def await_device(sdk: location.Sdk | None, *, identity: str, look_s: float) -> devices.Device:
    """The device with a board serial and PCI address, whatever its number is now; waits until it is there and ready.

    Its number changes when cards before it come or go, and it may be away for as long as somebody takes to reset it.

    Args:
        sdk: whose tool is asked.
        identity: as :attr:`qeff_engine.sdk.devices.Device.identity` has it.
        look_s: between two looks.
    """
    said = False
    while True:
        with contextlib.suppress(Infrastructure):
            for found in ready_devices(sdk):
                if found.identity == identity:
                    return found
        if not said:
            _logger.warning("device %s is not there or not ready; waiting for it", identity)
            said = True
        time.sleep(look_s)


def record(device: devices.Device, *, simulated: bool) -> DeviceRecord:
    """A device as the farm writes it."""
    return DeviceRecord(
        board_serial=device.board_serial,
        pci_address=device.pci_address,
        qid=device.qid,
        sku=device.sku,
        num_cores=device.nsp_total,
        dram_mb=device.dram_total_mb,
        simulated=simulated,
        status=device.status,
        free_cores=device.nsp_free,
    )
