"""The devices of a simulated SDK: which kinds there are, which of them one SDK has, which a process may see.

Standard library only. What is *in use* on a device is :mod:`~qeff_engine.simulated_sdk.occupancy`'s business.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qeff_engine.simulated_sdk import cost_parameters

if TYPE_CHECKING:
    from qeff_engine.simulated_sdk.faults import Fault

DEVICES_FILE = "devices.json"
FAULTS_FILE, FAULTS_VARIABLE = "faults.json", "QAIC_SIM_FAULTS"
VISIBLE_VARIABLE = "QAIC_VISIBLE_DEVICES"

_LIMITS = cost_parameters.values(cost_parameters.table()["limits"])
RESERVED_DRAM_MB: int = _LIMITS["reserved_dram_mb"]
VIRTUAL_CHANNELS: int = _LIMITS["virtual_channels"]


class BadDevices(ValueError):
    """A list of devices, or the file that holds it, that cannot be used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One sort of SoC; the figures and their sources are in ``cost_parameters.json``.

    Attributes:
        sku: the words of ``qaic-util`` for it.
        cores: NSPs that can be used.
        dram_mb: memory of the SoC.
        bandwidth_gb_s: of that memory, peak.
        clock_ghz: of an NSP under load.
        fp16_tflops: peak of the SoC.
        int8_tops: peak of the SoC.
        tdp_w: power cap of the board.
        socs_per_board: SoCs that share a board and its serial number.
    """

    sku: str
    cores: int
    dram_mb: int
    bandwidth_gb_s: float
    clock_ghz: float
    fp16_tflops: float
    int8_tops: float
    tdp_w: int
    socs_per_board: int


# One SoC each. Others of the family are left out, because their memory and peaks are not published.
KINDS: Mapping[str, Kind] = {
    name: Kind(**cost_parameters.values(entries)) for name, entries in cost_parameters.table()["devices"].items()
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """One SoC of an SDK.

    Attributes:
        qid: its number, in order of PCI addresses.
        kind: key of :data:`KINDS`.
        board_serial: shared by the SoCs of a board.
        pci_address: such as ``0000:01:00.0``.
    """

    qid: int
    kind: str
    board_serial: str
    pci_address: str

    @property
    def traits(self) -> Kind:
        """What its kind says."""
        return KINDS[self.kind]

    @property
    def usable_dram_mb(self) -> int:
        """Memory that programs can have."""
        return self.traits.dram_mb - RESERVED_DRAM_MB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A device as it shows itself now.

    Attributes:
        device: it, with its number of now.
        ill: the fault for which its status is ``Error``; None when it is ready.
        hot: the fault for which it is throttled; None when it is not.
    """

    device: Device
    ill: Fault | None = None
    hot: Fault | None = None


def parse(text: str) -> list[Device]:
    """The devices that ``ultra:4,standard:1`` asks for: comma-separated ``KIND:COUNT``, each count one SoC.

    Four Ultra SoCs in a row share a board.

    Raises:
        BadDevices: an unknown kind, a count below 1, or nothing at all.
    """
    kinds: list[str] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([a-z]+):(\d+)\s*", part)
        if found is None or found[1] not in KINDS or int(found[2]) < 1:
            raise BadDevices(f"'{part}' is not KIND:COUNT with KIND one of {', '.join(KINDS)} and COUNT at least 1.")
        kinds += [found[1]] * int(found[2])
    return _numbered(kinds)


def _numbered(kinds: list[str]) -> list[Device]:
    devices: list[Device] = []
    boards, on_board = 0, 0
    for qid, kind in enumerate(kinds):
        new_board = not devices or devices[-1].kind != kind or on_board == KINDS[kind].socs_per_board
        boards, on_board = (boards + 1, 1) if new_board else (boards, on_board + 1)
        serial = f"SIM{kind[:3].upper()}{boards:05d}"
        devices.append(Device(qid=qid, kind=kind, board_serial=serial, pci_address=f"0000:{qid + 1:02x}:00.0"))
    if len(devices) > 64:
        raise BadDevices(f"{len(devices)} devices are too many, expected at most 64 on one host.")
    return devices


def to_json(devices: list[Device]) -> str:
    """The text of the devices file."""
    return json.dumps({"devices": [dataclasses.asdict(device) for device in devices]}, indent=1) + "\n"


def load(root: Path) -> list[Device]:
    """All devices of the SDK at ``root``, by QID.

    Raises:
        BadDevices: the file is missing or damaged.
    """
    try:
        entries = json.loads((root / DEVICES_FILE).read_text())["devices"]
        devices = [Device(**entry) for entry in entries]
        unknown = [device.kind for device in devices if device.kind not in KINDS]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadDevices(f"{root / DEVICES_FILE} cannot be read: {error}. Install the simulated SDK again.") from error
    if unknown:
        raise BadDevices(f"{root / DEVICES_FILE} has the unknown kind '{unknown[0]}'. Install the simulated SDK again.")
    return sorted(devices, key=lambda device: device.qid)


def visible(devices: list[Device], *, environ: Mapping[str, str] | None = None) -> list[Device]:
    """Those devices that ``QAIC_VISIBLE_DEVICES`` (comma-separated QIDs) names; all when it is not set.

    QIDs keep their numbers; numbers that no device has are ignored.
    """
    listed = (os.environ if environ is None else environ).get(VISIBLE_VARIABLE, "").strip()
    if not listed:
        return devices
    wanted = {part.strip() for part in listed.split(",")}
    return [device for device in devices if str(device.qid) in wanted]


def are_disturbed(root: Path, *, environ: Mapping[str, str] | None = None) -> bool:
    """Whether somebody asked for faults of this SDK, which only :mod:`~qeff_engine.simulated_sdk.faults` reads."""
    return bool((os.environ if environ is None else environ).get(FAULTS_VARIABLE)) or (root / FAULTS_FILE).exists()
