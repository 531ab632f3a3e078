"""The table of ``qaic-util -t``: what is in use on each device, drawn again and again until it is interrupted.

The real tool draws boxes over the whole screen; here a device has a title and a line of the same eight figures.
Standard library only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

_CLEAR = "\x1b[2J\x1b[H"
_INVALID = "Invalid"


def show(records: Callable[[], Sequence[Record]], *, every_s: int) -> None:
    """Draw until the user interrupts.

    Args:
        records: what the devices say now, in the fields of ``qaic-util -q``.
        every_s: seconds between two drawings.
    """
    clear = _CLEAR if sys.stdout.isatty() else ""
    try:
        while True:
            sys.stdout.write(clear + text(records()) + "\n")
            sys.stdout.flush()
            time.sleep(every_s)
    except KeyboardInterrupt:
        return


def text(records: Sequence[Record]) -> str:
    """One drawing."""
    lines = [f"Date & time: {time.strftime('%Y-%m-%d %H:%M:%S')}"]
    for record in records:
        version = record.get("FW Version", _INVALID)
        lines.append(f"DeviceID-{record['QID']} --- Status: {record['Status']} --- FW Version: {version}")
        lines.append("  " + " | ".join(f"{name}: {value}" for name, value in _figures(record).items()))
    return "\n".join(lines) + "\n"


def _figures(record: Record) -> dict[str, str]:
    ready = "Nsp Total" in record

    def shown(form: Callable[[], str]) -> str:
        return form() if ready else _INVALID

    return {
        "NSP Used / Total": shown(lambda: f"{record['Nsp Total'] - record['Nsp Free']} / {record['Nsp Total']}"),
        "NW Loaded / Active": shown(lambda: f"{record['Networks Loaded']} / {record['Networks Active']}"),
        "DRAM Used / Total": shown(lambda: f"{_dram_used_mb(record)} MB / {record['Dram Total']}"),
        "DRAM Bandwidth": shown(lambda: record["Last 100ms Average Dram Bw"]),
        "NSP Frequency": shown(lambda: f"{record['NSP Frequency(Mhz)']} Mhz"),
        "DDR Frequency": shown(lambda: f"{record['DDR Frequency(Mhz)']} Mhz"),
        "Temperature": shown(lambda: f"{record['SoC temperature(degree C)']} C"),
        "Power / TDP Cap": shown(lambda: f"{record['Board power(Watts)']} W / {record['TDP Cap(Watts)']} W"),
    }


def _dram_used_mb(record: Record) -> int:
    return int(record["Dram Total"].removesuffix(" MB")) - int(record["Dram Free"].removesuffix(" MB"))
