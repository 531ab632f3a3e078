"""``qaic-util``: the SDK's devices and what is free on them, as text, JSON or a table; resets. Standard library only.

Format, usage and exit codes: the source of the open runtime's tool (quic/software-kit-for-qualcomm-cloud-ai-100,
utils/qaic-util and QUtil.cpp), where a ``QID n`` header stands at column 0 and each key on its own line behind a tab,
with no space after the colon. ``-j``, ``-f``, ``-s``, ``-a`` and ``-V`` are those of the closed tool, whose output for
the last three is not published: here ``-s`` and ``-a`` say nothing, and slicing is always enabled.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qeff_engine.simulated_sdk import command_options, occupancy, util_table, version_cli
from qeff_engine.simulated_sdk import devices as device_list
from qeff_engine.simulated_sdk.command_options import BadUsage, Option
from qeff_engine.simulated_sdk.devices import Device, Found

_FAILED = 255  # the tool returns -1, also after its help

_USAGE = """Usage: qaic-util [options]
  -d, --aic-device-id <id>                   AIC device ID. -d option can be used multiple times
  -q, --query [-d QID]                       Query command to get device information, default All
  -t, --table <refresh-rate-sec> [-d QID]    Display device information in tabular format. Data is refreshed
                                             after every <refresh-rate-sec>. Ctrl+C to exit
  -f <filter>                                Only devices with this field, such as "Board serial==X"
  -j <file>                                  Write device information to a JSON file
  -s [-d QID]                                Reset the cards of the devices, default All
  -a [-d QID]                                Enable tensor slicing
  -V                                         Version of the Platform SDK
  -h, --help                                 help
"""

_OPTIONS = (
    Option(short="d", long="aic-device-id", valued=True),
    Option(short="q", long="query"),
    Option(short="t", long="table", valued=True),
    Option(short="h", long="help"),
    Option(short="f", valued=True),
    Option(short="j", valued=True),
    Option(short="s"),
    Option(short="a"),
    Option(short="V"),
)

# Nothing is ever taken from these. Channels: each workload needs one; LPDDR4x at 2133 MHz stands in MLPerf's results;
# the other figures are placeholders, since none is published.
_ASSUMED: dict[str, Any] = {
    "Pc Total": 16,
    "Pc Reserved": 0,
    "MCID Total": 64,
    "MCID Free": 64,
    "Semaphore Total": 64,
    "Semaphore Free": 64,
    "DDR Frequency(Mhz)": "2133.00",
    "COMPNOC Frequency(Mhz)": "0.00",
    "MEMNOC Frequency(Mhz)": "0.00",
    "SYSNOC Frequency(Mhz)": "0.00",
    "SoC temperature(degree C)": "40.00",
}
# Power of a SoC without and with all cores busy, as shares of its part of the board's cap. The second from published
# figures: a Standard at 57 to 65 of 75 W, four SoCs of an Ultra at 126 to 148 of 150 W; the first is assumed.
_IDLE_POWER, _BUSY_POWER = 0.3, 0.9

_UNITS = (("(mhz)", "_mhz"), ("(watts)", "_watts"), ("(degree c)", "_c"), (" ", "_"), ("-", "_"))


@dataclasses.dataclass(kw_only=True)
class _Asked:
    """What a command line asks for; the last of several actions counts."""

    action: str = "query"
    qids: list[str] = dataclasses.field(default_factory=list)
    every_s: int = 0
    json_path: Path | None = None
    field: str = ""
    value: str = ""


def main(arguments: list[str], *, root: Path) -> int:
    """Run the tool and return its exit code."""
    try:
        asked = _read(arguments)
    except BadUsage as error:
        print(error, file=sys.stderr)
        print(_USAGE, end="")
        return _FAILED
    if asked.action == "version":
        return version_cli.main(["--platform"], root=root)
    if asked.action == "help":
        print(_USAGE, end="")
        return _FAILED
    try:
        present = _present(root)
    except (device_list.BadDevices, OSError) as error:
        print(error, file=sys.stderr)
        return _FAILED
    unknown = [qid for qid in asked.qids if qid not in {str(found.device.qid) for found in present}]
    if unknown:
        print(f"Device {unknown[0]} invalid", file=sys.stderr)
        return _FAILED
    version = version_cli.version_of(root, package="platform")

    def chosen() -> list[tuple[Device, dict[str, Any]]]:
        listed = [found for found in _present(root) if not asked.qids or str(found.device.qid) in asked.qids]
        pairs = [(found.device, _record(root, found=found, version=version)) for found in listed]
        return [pair for pair in pairs if not asked.field or str(pair[1].get(asked.field)) == asked.value]

    return _act(asked, root=root, devices=[found.device for found in present], chosen=chosen)


def _present(root: Path) -> list[Found]:
    """The devices that there are now."""
    if not device_list.are_disturbed(root):
        return [Found(device=device) for device in device_list.visible(device_list.load(root))]
    # Only then: the tool is asked again and again, and most of its time is importing.
    from qeff_engine.simulated_sdk import device_faults, fault_kinds

    return device_faults.present(root, tool=fault_kinds.UTIL)


def _act(
    asked: _Asked,
    *,
    root: Path,
    devices: list[Device],
    chosen: Callable[[], list[tuple[Device, dict[str, Any]]]],
) -> int:
    """Do what was asked of the devices that were chosen."""
    pairs = chosen()
    if asked.action == "reset":
        boards = {device.board_serial for device, _ in pairs}
        return _reset(root, devices=[device for device in devices if device.board_serial in boards])
    if asked.action == "table":
        if not pairs:
            print("Device list is zero")
            return _FAILED
        util_table.show(lambda: [record for _, record in chosen()], every_s=asked.every_s)
    elif asked.action == "query":
        records = [record for _, record in pairs]
        if asked.json_path is not None:
            return _write_json(asked.json_path, records=records)
        sys.stdout.write("".join(_block(record) for record in records))
    return 0


def _read(arguments: list[str]) -> _Asked:
    asked = _Asked()
    actions = {"query": "query", "help": "help", "s": "reset", "a": "slicing", "V": "version"}
    for name, value in command_options.parse(arguments, tool="qaic-util", options=_OPTIONS):
        if name in actions:
            asked.action = actions[name]
        elif name == "aic-device-id":
            asked.qids.append(value)
        elif name == "j":
            asked.json_path = Path(value)
        elif name == "table":
            if not value.isdigit() or int(value) < 1:
                raise BadUsage(f"qaic-util: refresh rate is '{value}', expected seconds of at least 1")
            asked.action, asked.every_s = "table", int(value)
        else:
            asked.field, equal, asked.value = value.partition("==")
            if not asked.field or not equal:
                raise BadUsage(f"qaic-util: filter is '{value}', expected FIELD==VALUE")
    return asked


def _reset(root: Path, *, devices: list[Device]) -> int:
    """Reset whole cards: programs on them lose their cores and their states."""
    for device in devices:
        try:
            occupancy.reset(root, device=device)
        except OSError as error:
            print(f"Failed to reset Device ID: {device.qid}: {error.strerror}", file=sys.stderr)
            return _FAILED
    return 0


def _write_json(path: Path, *, records: list[dict[str, Any]]) -> int:
    try:
        path.write_text(json.dumps({"device_info": [_snake(record) for record in records]}, indent=1) + "\n")
    except OSError as error:
        print(f"Unable to write {path}: {error.strerror}", file=sys.stderr)
        return _FAILED
    return 0


def _record(root: Path, *, found: Found, version: str) -> dict[str, Any]:
    """Field names and values of a device in the tool's order; the block ends early when it is not ready."""
    device = found.device
    try:
        used = occupancy.usage(root, device=device) if found.ill is None else None
    except OSError:
        used = None  # as for a real device that this user may not open
    status = "Ready" if used is not None else "Error"
    record: dict[str, Any] = {
        "QID": device.qid,
        "Status": status,
        "PCI Address": device.pci_address,
        "PCI Info": "Processing accelerators Qualcomm Device a100",
        "Max Link Speed": "16GT/s",
        "Max Link Width": "x8",
        "Current Link Speed": "16GT/s",
        "Current Link Width": "x8",
        "Dev Link": f"/dev/accel/accel{device.qid}",
    }
    if used is None:
        return record
    record |= _images(device, version=version) | _resources(device, used=used) | _closing(device, used=used)
    if found.hot is not None:
        record["NSP Frequency(Mhz)"] = f"{device.traits.clock_ghz * 1000 * found.hot.parameters['clock']:.2f}"
        record["SoC temperature(degree C)"] = f"{found.hot.parameters['celsius']:.2f}"
    return record


def _images(device: Device, *, version: str) -> dict[str, Any]:
    """Hardware and firmware. ``MHI ID`` and ``Device Capabilities`` are the closed tool's; their place is not known."""
    return {
        "HW Version": "2.0.0.0",
        "HW Serial": f"0x{device.qid + 1:08x}",
        "FW Version": version,
        "FW QC_IMAGE_VERSION": f"SIMULATED.{version}",
        "FW OEM_IMAGE_VERSION": "SIMULATED",
        "FW IMAGE_VARIANT": "AIC100.SIMULATED",
        "NSP Version": version,
        "NSP QC_IMAGE_VERSION": f"SIMULATED.{version}",
        "NSP OEM_IMAGE_VERSION": "SIMULATED",
        "NSP IMAGE_VARIANT": "AIC100.SIMULATED",
        "MHI ID": device.qid,
        "Device Capabilities": "HybridBoot+,MDP+",
    }


def _resources(device: Device, *, used: occupancy.Usage) -> dict[str, Any]:
    """What there is and what is free."""
    kind = device.traits
    return {
        "Dram Total": f"{kind.dram_mb} MB",
        "Dram Free": f"{device.usable_dram_mb - used.taken.dram_mb} MB",
        "Dram Fragmentation": "0.00%",
        "Vc Total": device_list.VIRTUAL_CHANNELS,
        "Vc Free": device_list.VIRTUAL_CHANNELS - used.taken.channels,
        "Pc Total": _ASSUMED["Pc Total"],
        "Pc Reserved": _ASSUMED["Pc Reserved"],
        "Nsp Total": kind.cores,
        "Nsp Free": kind.cores - used.taken.cores,
        "Last 100ms Average Dram Bw": "0 KBps",
        "MCID Total": _ASSUMED["MCID Total"],
        "MCID Free": _ASSUMED["MCID Free"],
        "Semaphore Total": _ASSUMED["Semaphore Total"],
        "Semaphore Free": _ASSUMED["Semaphore Free"],
        "Constants Loaded": used.programs,
        "Constants In-Use": used.programs,
        "Networks Loaded": used.programs,
        "Networks Active": used.programs,
    }


def _closing(device: Device, *, used: occupancy.Usage) -> dict[str, Any]:
    """Frequencies, versions, board and what sensors say."""
    kind = device.traits
    busy = used.taken.cores / kind.cores
    power_w = kind.tdp_w / kind.socs_per_board * (_IDLE_POWER + (_BUSY_POWER - _IDLE_POWER) * busy)
    noc = {f"{name} Frequency(Mhz)": _ASSUMED[f"{name} Frequency(Mhz)"] for name in ("COMPNOC", "MEMNOC", "SYSNOC")}
    return {
        "NSP Frequency(Mhz)": f"{kind.clock_ghz * 1000:.2f}",
        "DDR Frequency(Mhz)": _ASSUMED["DDR Frequency(Mhz)"],
        **noc,
        "Metadata Version": "0.0",
        "NNC Command Protocol Version": "0.0",
        "SBL Image": "SIMULATED",
        "PVS Image Version": 0,
        "NSP Defective PG Mask": "0x0",
        "Sku Type": kind.sku,
        "Board serial": device.board_serial,
        "SoC temperature(degree C)": _ASSUMED["SoC temperature(degree C)"],
        "Board power(Watts)": f"{power_w:.2f}",
        "TDP Cap(Watts)": f"{kind.tdp_w:.2f}",
    }


def _block(record: dict[str, Any]) -> str:
    lines = [f"QID {record['QID']}"]
    for key, value in record.items():
        if key != "QID":
            # Two lines of the real tool have a blank where the others have none.
            value_text = {"Dev Link": f"{value} ", "NSP Defective PG Mask": f" {value}"}.get(key, str(value))
            lines.append(f"\t{key}:{value_text}")
    return "\n".join(lines) + "\n"


def _snake(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the JSON file's names: snake case, units in the name, plain numbers."""
    fields: dict[str, Any] = {}
    for key, value in record.items():
        name = {"Status": "dev_status"}.get(key, key.lower())
        for old, new in _UNITS:
            name = name.replace(old, new)
        if isinstance(value, str) and value.endswith(" MB"):
            fields[f"{name}_mb"] = int(value[:-3])
        elif name.endswith(("_mhz", "_watts", "_c")):
            fields[name] = float(value)
        else:
            fields[name] = value
    return fields
