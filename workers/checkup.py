"""A host's look at its devices, again and again: who is gone, ill, back, or used by somebody else.

In a thread of its own, for the tool may hang with a device. Attempts whose device is gone hear it with the next
renewal of their lease; a device's node hears it with its heartbeat.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

import sqlalchemy as sa

from farm.db import Database
from farm.fleet import devices
from farm.lifecycle import health
from farm.records import DeviceRecord
from farm.settings import Settings
from qeff_engine.errors import EngineError
from qeff_engine.sdk import devices as sdk_devices
from qeff_engine.sdk import location
from workers import discovery

_logger = logging.getLogger(__name__)
_LIMIT_S = 20.0  # a healthy tool answers within a second or two


class Checkup:
    """Looks at the devices of a host.

    Args:
        database: where it writes what it finds.
        settings: how often it looks, and when a device gets a rest.
        sdk: whose tool it asks.
        host_id: this host.
    """

    def __init__(self, database: Database, *, settings: Settings, sdk: location.Sdk, host_id: int) -> None:
        self._database = database
        self._settings = settings
        self._sdk = sdk
        self._host_id = host_id
        self._failures = 0  # of the tool, in a row
        self._free: Mapping[int, int] = {}  # cores by device, at the last look
        self._wrong: Mapping[int, str] = {}  # what was said already
        self._ended = threading.Event()

    def start(self) -> None:
        """Look every now and then from now on."""
        threading.Thread(target=self._run, name="checkup", daemon=True).start()

    def stop(self) -> None:
        """Look no more. Does not wait for a tool that hangs."""
        self._ended.set()

    def look(self) -> None:
        """Look once."""
        try:
            found = sdk_devices.discover(self._sdk, limit_s=_LIMIT_S)
        except EngineError as error:
            self._failures += 1
            _logger.warning("the devices cannot be checked (%d in a row): %s", self._failures, error)
            if self._failures >= self._settings.quarantine_after:
                with self._database.write() as connection:
                    health.not_answering(connection, host_id=self._host_id, reason=f"it cannot be checked: {error}")
            return
        self._failures = 0
        self._write([discovery.record(device, simulated=self._sdk.simulated) for device in found])

    def _write(self, found: list[DeviceRecord]) -> None:
        ready = [record for record in found if record.status == health.READY]
        ill = [record for record in found if record.status != health.READY]
        with self._database.write() as connection:
            ids = devices.register_devices(
                connection, host_id=self._host_id, found=ready + ill, quarantine=health.Quarantine.of(self._settings)
            )
            free = {
                device_id: record.free_cores
                for device_id, record in zip(ids, ready, strict=False)
                if record.free_cores is not None
            }
            # An attempt may have begun or ended between the tool's look and ours: what was free at either look is free.
            lately = {device_id: max(number, self._free.get(device_id, number)) for device_id, number in free.items()}
            wrong = devices.note_foreign_use(
                connection, {device_id: number for device_id, number in lately.items() if device_id in self._free}
            )
        for device_id, words in wrong.items():
            if device_id not in self._wrong:
                _logger.warning("device %d: %s", device_id, words)
        self._free, self._wrong = free, wrong

    def _run(self) -> None:
        while not self._ended.wait(self._settings.device_check_s):
            try:
                self.look()
            except sa.exc.DBAPIError as error:
                _logger.warning("what the devices' check found cannot be written: %s", error)
            except Exception:
                # The outermost step of a thread: a check that goes wrong must not be the last one.
                _logger.exception("the devices' check went wrong")
