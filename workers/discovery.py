"""What this host has: processors, memory, devices, versions. Nothing heavy is imported to find out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from farm.errors import NotFound
from qeff_engine import toolchain
from qeff_engine.errors import Infrastructure
from qeff_engine.sdk import devices, location
from workers import memory

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


def ready_devices(sdk: location.Sdk | None) -> list[devices.Device]:
    """The devices of this host that can be used now, by number."""
    return [device for device in devices.discover(sdk) if device.ready] if sdk is not None else []


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
