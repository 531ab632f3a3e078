"""Tests a node's device before it gets work again: after it failed, was away, or may have computed wrong."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import psutil
import sqlalchemy as sa

from farm.db import Database
from farm.lifecycle import health
from qeff_engine.sdk import smoke_test

_logger = logging.getLogger(__name__)
_TOO_LONG = "it did not end in time"
_LIMIT_S = smoke_test.LIMIT_S + 10.0  # it ends itself before


class DeviceTest:
    """Tests one device, one test at a time, in a thread that nobody waits for.

    Args:
        database: where it writes what the test says.
        quarantine: when a device that fails gets a rest.
        sdk_root: whose tools the test uses.
        device_id: the device in the database.
        qid: its number.
        programs: directory for what the test compiles.
        environ: of the test.
    """

    def __init__(
        self,
        database: Database,
        *,
        quarantine: health.Quarantine,
        sdk_root: Path,
        device_id: int,
        qid: int,
        programs: Path,
        environ: Mapping[str, str],
    ) -> None:
        self._database = database
        self._quarantine = quarantine
        self._device_id = device_id
        self._qid = qid
        self._environ = dict(environ)
        words = ("--sdk", str(sdk_root), "--qid", str(qid), "--programs", str(programs))
        self._command = [sys.executable, "-m", smoke_test.__name__, *words]
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Begin a test, unless one runs."""
        if not self._stopped.is_set() and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="device-test", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End a test that runs, and begin none; what it would have said is not written."""
        self._stopped.set()
        process = self._process
        if process is not None:
            _kill(process)

    def _run(self) -> None:
        code, said = self._tested()
        if self._stopped.is_set():
            return
        try:
            with self._database.write() as connection:
                if code == smoke_test.PASSED:
                    health.passed(connection, self._device_id)
                elif code != smoke_test.UNDECIDED:
                    health.failed(connection, self._device_id, reason=said, quarantine=self._quarantine)
        except sa.exc.DBAPIError as error:
            _logger.warning("what the test of device %d says cannot be written: %s", self._qid, error)

    def _tested(self) -> tuple[int, str]:
        """Exit code of a test, and what it said."""
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environ,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            return smoke_test.FAILED, f"it could not be tested: {error}"
        with process:
            self._process = process
            try:
                said, _ = process.communicate(timeout=_LIMIT_S)
            except subprocess.TimeoutExpired:
                _kill(process)
                return smoke_test.FAILED, _TOO_LONG
            finally:
                self._process = None
        if process.returncode == -signal.SIGALRM:
            return smoke_test.FAILED, _TOO_LONG
        words = said.strip().splitlines() or [f"it ended with exit code {process.returncode}"]
        _logger.info("test of device %d: %s", self._qid, words[-1])
        return process.returncode, words[-1]


def _kill(process: subprocess.Popen[str]) -> None:
    """End a test with its tools, which have sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(process.pid)
        leader.suspend()  # it starts no other meanwhile
        for found in (*leader.children(recursive=True), leader):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.kill()
