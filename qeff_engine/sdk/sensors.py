"""Power and temperature of devices while something runs on them, where the host shows them.

The kernel's driver offers them as hwmon files of a device's PCI function: ``temp2_input`` in thousandths of a degree,
``power1_input`` in millionths of a watt and ``power1_max``, the board's cap. Simulated devices have none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qeff_engine.sdk.devices import Device

ROOT_VARIABLE = "QEFF_SYSFS_ROOT"
_DEFAULT_ROOT = "/sys"
_PERIOD_S = 0.1
_MICRO, _MILLI = 1e-6, 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What one device shows at one moment; None what it does not.

    Attributes:
        power_w: of its board.
        temperature_c: of its SoC.
        cap_w: power cap of its board.
    """

    power_w: float | None
    temperature_c: float | None
    cap_w: float | None


class Watch:
    """Readings of several devices, taken again and again; complete when its block has ended."""

    def __init__(self, boards: Mapping[str, Sequence[Path]]) -> None:
        self._boards = boards
        self._power_w: dict[str, list[float]] = {board: [] for board in boards}
        self._temperatures_c: list[float] = []
        self._caps_w: dict[str, float] = {}

    @property
    def power_w(self) -> float | None:
        """Mean power of all boards together; None when none shows it."""
        means = [statistics.fmean(values) for values in self._power_w.values() if values]
        return sum(means) if means else None

    @property
    def temperature_c(self) -> float | None:
        """The highest temperature of any device."""
        return max(self._temperatures_c, default=None)

    @property
    def cap_w(self) -> float | None:
        """Power caps of all boards together."""
        return sum(self._caps_w.values()) if self._caps_w else None

    def figures(self, *, seconds: float | None = None, count: int = 0, what: str = "token") -> dict[str, Any]:
        """Figures of a measurement; empty where the host shows nothing.

        Args:
            seconds: that the work took.
            count: pieces of work that were done in that time.
            what: name of a piece.
        """
        found = {"power_w": self.power_w, "power_cap_w": self.cap_w, "temperature_c": self.temperature_c}
        if self.power_w is not None and seconds and count:
            found[f"joules_per_{what}"] = self.power_w * seconds / count
        return {name: round(value, 6) for name, value in found.items() if value is not None}

    def sample(self) -> None:
        """Take one reading of every device."""
        for board, folders in self._boards.items():
            readings = [read(folder) for folder in folders]
            # Each device of a board shows the power of the whole board.
            powers = [reading.power_w for reading in readings if reading.power_w is not None]
            if powers:
                self._power_w[board].append(statistics.fmean(powers))
            self._temperatures_c += [item.temperature_c for item in readings if item.temperature_c is not None]
            for reading in readings:
                if reading.cap_w is not None:
                    self._caps_w[board] = reading.cap_w


@contextlib.contextmanager
def watch(devices: Sequence[Device], *, root: Path | None = None, period_s: float = _PERIOD_S) -> Iterator[Watch]:
    """Read the sensors of devices while a block runs, at its beginning and its end at least.

    Args:
        devices: that are used.
        root: where sysfs is; by default what ``QEFF_SYSFS_ROOT`` names, else ``/sys``.
        period_s: seconds between two readings.
    """
    found = Watch(_boards(devices, root=root or Path(os.environ.get(ROOT_VARIABLE) or _DEFAULT_ROOT)))
    found.sample()
    if found.power_w is None and found.temperature_c is None:
        yield found
        return
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(period_s):
            found.sample()

    thread = threading.Thread(target=go_on, name="sensors", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found.sample()


def read(folder: Path) -> Reading:
    """What the files of a hwmon folder say now; one that cannot be read says nothing."""
    return Reading(
        power_w=_number(folder / "power1_input", scale=_MICRO),
        temperature_c=_number(folder / "temp2_input", scale=_MILLI),
        cap_w=_number(folder / "power1_max", scale=_MICRO),
    )


def _number(path: Path, *, scale: float) -> float | None:
    try:
        return int(path.read_text()) * scale
    except (OSError, ValueError):
        return None


def _boards(devices: Sequence[Device], *, root: Path) -> dict[str, list[Path]]:
    """The hwmon folders of devices by board; those that have none are left out."""
    boards: dict[str, list[Path]] = {}
    for device in devices:
        # An address that is none finds no folder, or one outside of the devices.
        if not device.pci_address or "/" in device.pci_address:
            continue
        folders = sorted((root / "bus" / "pci" / "devices" / device.pci_address / "hwmon").glob("hwmon*"))
        if folders:
            boards.setdefault(device.board_serial or device.pci_address, []).append(folders[0])
    return boards
