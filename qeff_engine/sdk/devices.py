"""Which devices this host has, as the SDK's ``qaic-util`` reports them. Standard library only."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qeff_engine.errors import DeviceLost, DeviceOutOfMemory, Infrastructure, InvalidInput
from qeff_engine.sdk import asking
from qeff_engine.sdk.location import Sdk

READY = "Ready"
_QUERY_LIMIT_S = 60.0  # a healthy tool answers within a second or two
_STATUSES = (READY, "Initializing", "Error", "Unknown")
_REQUIRED = ("nsp_total", "dram_total")  # what every version of the tool says of a ready device
_NO_DEVICES = re.compile(r"\bno\b.*\bdevices?\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """One SoC, as it was at the time of the query.

    Attributes:
        qid: number by which tools and runtime address it; it may shift when a card dies.
        status: ``Ready``, ``Initializing``, ``Error`` (also: no permission) or ``Unknown``.
        sku: the tool's words, such as ``PCIe Ultra``.
        board_serial: serial of the card; the SoCs of a card share it.
        pci_address: such as ``0000:01:00.0``.
        nsp_total: cores; 0 when the device is not ready.
        nsp_free: cores that no program holds.
        dram_total_mb: size of its memory.
        dram_free_mb: memory that no program holds.
        capabilities: the tool's words, such as ``HybridBoot+,MDP+``; empty where it has none.
    """

    qid: int
    status: str
    sku: str
    board_serial: str
    pci_address: str
    nsp_total: int
    nsp_free: int
    dram_total_mb: int
    dram_free_mb: int
    capabilities: str = ""

    @property
    def identity(self) -> str:
        """What stays the same when numbers shift: board serial and PCI address; the number if the tool has neither."""
        if not self.board_serial and not self.pci_address:
            return f"qid {self.qid}"
        return f"{self.board_serial}/{self.pci_address}"

    @property
    def ready(self) -> bool:
        """Whether programs can be activated on it."""
        return self.status == READY


def discover(sdk: Sdk, *, limit_s: float = _QUERY_LIMIT_S) -> list[Device]:
    """All devices of this host by ``qid``, also those that are not ready.

    Args:
        sdk: whose tool is asked.
        limit_s: how long the tool may take.

    Raises:
        Infrastructure: the tool is missing, fails, hangs or says nothing that can be read.
    """
    tool = sdk.tool("qaic-util")
    with tempfile.TemporaryDirectory(prefix="qaic-util-") as scratch:
        json_path = Path(scratch) / "devices.json"
        answer = asking.ask([str(tool), "-q", "-j", str(json_path)], limit_s=limit_s, apart=True)
        if answer.exit_code == 0 and json_path.is_file():
            devices = parse_json(json_path.read_text(errors="replace"))
            if devices is not None:
                return devices
    if answer.exit_code != 0 or not _blocks(answer.text):  # older tools know no -j, and its form may be another one
        answer = asking.ask([str(tool), "-q"], limit_s=limit_s, apart=True)
    if answer.exit_code != 0:
        raise Infrastructure(
            f"{tool} -q ended with exit code {answer.exit_code}: {answer.last_line or 'it said nothing.'}",
            advice="Check that the driver is loaded and that you may open /dev/accel/* (group qaic).",
        )
    return parse_text(answer.text)


def pick(devices: Iterable[Device], *, num_cores: int, num_devices: int) -> tuple[Device, ...]:
    """The devices for a program when nobody granted any: ready, enough free cores, the tightest fit first.

    Several are taken from one board if it has them, since its own switch connects them.

    Raises:
        InvalidInput: no device of this host could ever run it.
        DeviceLost: devices exist but are not ready or in use at the moment.
    """
    known = list(devices)
    wide_enough = [device for device in known if device.nsp_total >= num_cores]
    if len(wide_enough) < num_devices and all(device.ready for device in known):
        widest = max((device.nsp_total for device in known), default=0)
        raise InvalidInput(
            f"The program needs {num_devices} device(s) with {num_cores} cores; this host has {len(known)} device(s), "
            f"the widest with {widest} cores.",
            advice="Compile with fewer cores.",
        )
    fitting = sorted(
        (device for device in wide_enough if device.ready and device.nsp_free >= num_cores),
        key=lambda device: (device.nsp_free, device.qid),
    )
    if len(fitting) < num_devices:
        raise DeviceLost(
            f"The program needs {num_devices} device(s) with {num_cores} free cores; at the moment "
            f"{len(fitting)} of {len(known)} device(s) have them.",
            advice="Wait until another program ends, or look at `qaic-util -q`.",
        )
    by_board: dict[str, list[Device]] = {}
    for device in fitting:
        by_board.setdefault(device.board_serial, []).append(device)
    whole = [group for serial, group in by_board.items() if serial and len(group) >= num_devices]
    return tuple(min(whole, key=len, default=fitting)[:num_devices])


def require_room(device: Device, *, num_cores: int, dram_bytes: int) -> None:
    """Look before an activation whether a program fits a device now.

    Args:
        device: as it has just been found.
        num_cores: that the program needs on it.
        dram_bytes: memory that the program needs on it; a lower bound will do.

    Raises:
        DeviceOutOfMemory: it would not fit if nobody else used the device.
        DeviceLost: other programs hold what it needs.
    """
    needed_mb = -(-dram_bytes // (1 << 20))
    in_use = device.nsp_free < device.nsp_total
    short = [
        f"{needed} {unit} on device {device.qid} ({device.sku}), and {free} of {total} are free"
        for needed, free, total, unit in (
            (num_cores, device.nsp_free, device.nsp_total, "cores"),
            (needed_mb, device.dram_free_mb, device.dram_total_mb, "MB of memory"),
        )
        if needed > free
    ]
    if not short:
        return
    message = f"The program needs {'; it needs '.join(short)}."
    if needed_mb > device.dram_total_mb or (needed_mb > device.dram_free_mb and not in_use):
        raise DeviceOutOfMemory(
            message, advice="Use mxfp6 weights or mxint8 KV, a shorter context, a smaller batch or more devices."
        )
    raise DeviceLost(message, advice="Other programs hold the rest: wait until they end, or look at `qaic-util -q`.")


def parse_json(text: str) -> list[Device] | None:
    """The devices of a ``qaic-util -j`` file, or None when it lacks what a device record needs."""
    try:
        entries = json.loads(text)["device_info"]
        devices = [_device(_flat(entry)) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    if any(device.status not in _STATUSES for device in devices):
        return None
    return sorted(devices, key=lambda device: device.qid)


def parse_text(text: str) -> list[Device]:
    """The devices of ``qaic-util -q`` output: a ``QID n`` line, then ``Key:Value`` lines.

    One that is said to be ready without its cores and memory is listed with status ``Unknown``; what else is missing,
    unknown or in the way costs nothing.

    Raises:
        Infrastructure: there is text, but no device in it.
    """
    blocks = _blocks(text)
    if not blocks and text.strip() and not _NO_DEVICES.search(text):
        raise Infrastructure(
            f"qaic-util said something that is no list of devices: {asking.last_line(text)[:200]}",
            advice="Expected lines such as 'QID 0' and 'Status:Ready'; run `qaic-util -q` by hand.",
        )
    devices = []
    for block in blocks:
        try:
            devices.append(_device(block))
        except KeyError:
            devices.append(_device({**block, "status": "Unknown"}))
    return sorted(devices, key=lambda device: device.qid)


def _blocks(text: str) -> list[dict[str, Any]]:
    """The fields of every device in the text form; of a field that stands twice the first counts."""
    blocks: list[dict[str, Any]] = []
    for line in text.splitlines():
        header = re.match(r"\ufeff?QID (\d{1,9})\s*$", line, re.ASCII)
        if header:
            blocks.append({"qid": int(header[1])})
        elif blocks and ":" in line:
            key, value = line.split(":", 1)
            if _snake(key) != "qid":
                blocks[-1].setdefault(_snake(key), value.strip())
    return blocks


def _device(fields: Mapping[str, Any]) -> Device:
    """A device of normalized fields; raises KeyError when a ready one lacks a required field."""
    status = str(fields.get("dev_status") or fields.get("status") or "Unknown")
    if status == READY:
        for name in _REQUIRED:
            if not _number(fields, name=name):
                raise KeyError(name)
    nsp_total, dram_total_mb = _number(fields, name="nsp_total"), _number(fields, name="dram_total")
    return Device(
        qid=int(fields["qid"]),
        status=status,
        sku=str(fields.get("sku_type") or ""),
        board_serial=str(fields.get("board_serial") or ""),
        pci_address=str(fields.get("pci_address") or ""),
        nsp_total=nsp_total,
        nsp_free=_number(fields, name="nsp_free", default=nsp_total),
        dram_total_mb=dram_total_mb,
        dram_free_mb=_number(fields, name="dram_free", default=dram_total_mb),
        capabilities=str(fields.get("device_capabilities") or ""),
    )


def _number(fields: Mapping[str, Any], *, name: str, default: int = 0) -> int:
    """The whole number at the beginning of a field such as ``32768 MB``; the default when it has none."""
    found = re.match(r"\s*(\d{1,9})(?!\d)", str(fields.get(name, "")), re.ASCII)
    return int(found[1]) if found else default


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the objects inside it merged into it, names normalized."""
    fields: dict[str, Any] = {}
    for key, value in entry.items():
        if isinstance(value, Mapping):
            fields.update(_flat(value))
        else:
            fields[_snake(key)] = value
    return fields


def _snake(key: str) -> str:
    """A field name in snake case without its unit: ``Dram Total`` and ``dram_total_mb`` are both ``dram_total``."""
    name = re.sub(r"[^a-z0-9]+", "_", key.strip().lower()).strip("_")
    return re.sub(r"_(mb|mhz|watts)$", "", name)
