"""``qaic-util``: the SDK's devices and what is free on them, as text or JSON. Standard library only.

Format: the open runtime's source, where a ``QID n`` header stands at column 0 and each key on its own line behind a
tab, with no space after the colon.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from qeff_engine.simulated_sdk import devices as device_list
from qeff_engine.simulated_sdk import occupancy, version_cli

_USAGE = """Usage: qaic-util [-q] [-d QID]... [-j FILE] [-V] [-h]
  -q        query the devices
  -d QID    only this device; may be repeated
  -j FILE   write the answer to FILE as JSON
  -V        version
"""


def main(arguments: list[str], *, root: Path) -> int:
    """Run the tool and return its exit code."""
    try:
        qids, json_path, mode = _options(arguments)
    except ValueError as error:
        print(f"{error}\n{_USAGE}", file=sys.stderr, end="")
        return 1
    if mode == "version":
        return version_cli.main(["--platform"], root=root)
    if mode == "help":
        print(_USAGE, end="")
        return 0
    try:
        devices = device_list.visible(device_list.load(root))
    except device_list.BadDevices as error:
        print(error, file=sys.stderr)
        return 1
    unknown = [qid for qid in qids if qid not in {device.qid for device in devices}]
    if unknown:
        print(f"Invalid device:{unknown[0]}", file=sys.stderr)
        return 1
    version = version_cli.version_of(root, package="platform")
    records = [_record(root, device=device, version=version) for device in devices if not qids or device.qid in qids]
    if json_path is not None:
        try:
            json_path.write_text(json.dumps({"device_info": [_snake(record) for record in records]}, indent=1) + "\n")
        except OSError as error:
            print(f"Unable to write {json_path}: {error.strerror}", file=sys.stderr)
            return 1
    else:
        print("\n".join(_block(record) for record in records))
    return 0


def _options(arguments: list[str]) -> tuple[list[int], Path | None, str]:
    """Selected QIDs, JSON path and what to do; raises ValueError on anything unknown."""
    qids: list[int] = []
    json_path: Path | None = None
    mode = "query"
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-d", "-j"):
            value = next(rest, None)
            if value is None or (argument == "-d" and not value.isdigit()):
                raise ValueError(f"Option {argument} needs a value, got {value!r}.")
            if argument == "-d":
                qids.append(int(value))
            else:
                json_path = Path(value)
        elif argument in ("-V", "-h", "--help"):
            mode = "version" if argument == "-V" else "help"
        elif argument != "-q":
            raise ValueError(f"Unknown option {argument}.")
    return qids, json_path, mode


def _record(root: Path, *, device: device_list.Device, version: str) -> dict[str, Any]:
    """Field names and values of a device in the tool's order; the block ends early when it is not ready."""
    kind = device.traits
    try:
        used = occupancy.usage(root, device=device)
        status = "Ready"
    except OSError:
        used, status = None, "Error"  # as for a real device that this user may not open
    record: dict[str, Any] = {
        "QID": device.qid,
        "Status": status,
        "PCI Address": device.pci_address,
        "PCI Info": "Processing accelerators: Qualcomm Device a100",
        "Max Link Speed": "16GT/s",
        "Max Link Width": "x8",
        "Current Link Speed": "16GT/s",
        "Current Link Width": "x8",
        "Dev Link": f"/dev/accel/accel{device.qid}",
    }
    if used is None:
        return record
    return record | {
        "HW Version": "2.0",
        "HW Serial": f"0x{device.qid + 1:08x}",
        "FW Version": version,
        "FW QC_IMAGE_VERSION": f"SIMULATED.{version}",
        "FW OEM_IMAGE_VERSION": "SIMULATED",
        "FW IMAGE_VARIANT": "AIC100.SIMULATED",
        "NSP Version": version,
        "NSP QC_IMAGE_VERSION": f"SIMULATED.{version}",
        "NSP OEM_IMAGE_VERSION": "SIMULATED",
        "NSP IMAGE_VARIANT": "AIC100.SIMULATED",
        "Dram Total": f"{kind.dram_mb} MB",
        "Dram Free": f"{device.usable_dram_mb - used.taken.dram_mb} MB",
        "Dram Fragmentation": "0.00%",
        "Vc Total": device_list.VIRTUAL_CHANNELS,
        "Vc Free": device_list.VIRTUAL_CHANNELS - used.taken.channels,
        "Nsp Total": kind.cores,
        "Nsp Free": kind.cores - used.taken.cores,
        "Constants Loaded": used.programs,
        "Constants In-Use": used.programs,
        "Networks Loaded": used.programs,
        "Networks Active": used.programs,
        "NSP Frequency(Mhz)": round(kind.clock_ghz * 1000),
        "NSP Defective PG Mask": "0x0",
        "Sku Type": kind.sku,
        "Board serial": device.board_serial,
        "TDP Cap(Watts)": kind.tdp_w,
    }


def _block(record: dict[str, Any]) -> str:
    lines = [f"QID {record['QID']}"]
    for key, value in record.items():
        if key != "QID":
            # Two lines of the real tool have a blank where the others have none.
            value_text = {"Dev Link": f"{value} ", "NSP Defective PG Mask": f" {value}"}.get(key, str(value))
            lines.append(f"\t{key}:{value_text}")
    return "\n".join(lines)


def _snake(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the JSON file's names: snake case, units in the name, plain numbers."""
    fields: dict[str, Any] = {}
    for key, value in record.items():
        name = {"Status": "dev_status"}.get(key, key.lower())
        for old, new in (("(mhz)", "_mhz"), ("(watts)", "_watts"), (" ", "_"), ("-", "_")):
            name = name.replace(old, new)
        if isinstance(value, str) and value.endswith(" MB"):
            fields[f"{name}_mb"] = int(value[:-3])
        else:
            fields[name] = value
    return fields
