"""A node's test of its device, with the SDK's tools: what it says is written, and a node that stops leaves none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.fleet import devices
from farm.lifecycle import health
from farm.models import devices as device_rows
from farm.records import DeviceRecord
from workers.device_test import DeviceTest

_LIMIT_S = 120.0  # a deadline, not a measurement


@pytest.fixture
def sdk(tmp_path: Path) -> Path:
    root = tmp_path / "sdk"
    command = [sys.executable, "-m", "qeff_engine.simulated_sdk", "install", str(root), "--devices", "ultra:1"]
    subprocess.run(command, check=True, capture_output=True)
    return root


@pytest.fixture
def database() -> Iterator[Database]:
    with testing.fresh_database() as found:
        yield found


@pytest.fixture
def device_test(sdk: Path, database: Database, tmp_path: Path) -> Iterator[DeviceTest]:
    """The test of a device that is due."""
    record = DeviceRecord(
        board_serial="b", pci_address="p", qid=0, sku="ultra", num_cores=16, dram_mb=1, simulated=True
    )
    with database.write() as connection:
        host_id = devices.register_host(connection, name="h", num_cpus=1, ram_bytes=1, num_slots=1, toolchain={})
        (device_id,) = devices.register_devices(connection, host_id=host_id, found=[record])
        health.suspect(connection, [device_id], reason="wrong tokens")
    found = DeviceTest(
        database,
        quarantine=health.Quarantine(),
        sdk_root=sdk,
        device_id=device_id,
        qid=0,
        programs=tmp_path / "programs",
        environ=os.environ,
    )
    yield found
    found.stop()


def row(database: Database) -> tuple[str, str, int]:
    with database.read() as connection:
        columns = (device_rows.c.health, device_rows.c.health_reason, device_rows.c.faults)
        found = connection.execute(sa.select(*columns)).one()
        return found[0], found[1], found[2]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_device_that_passes_gets_work_again(device_test: DeviceTest, database: Database) -> None:
    device_test.start()
    device_test.start()  # one runs
    wait_until(lambda: row(database)[0] == "ready")
    assert row(database) == ("ready", "", 0)


def test_a_device_that_fails_rests_and_says_why(device_test: DeviceTest, database: Database, sdk: Path) -> None:
    (sdk / "faults.json").write_text(json.dumps({"faults": [{"kind": "device-error"}]}))
    device_test.start()
    wait_until(lambda: row(database)[2] > 0)
    said = "its test failed, it rests and is tested again: qaic-util says Error."
    assert row(database) == ("quarantined", said, 3)


def test_a_test_that_hangs_ends_with_its_node_and_says_nothing(
    device_test: DeviceTest, database: Database, sdk: Path, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    program = f"import os, signal; open({str(pid_file)!r}, 'w').write(str(os.getpid())); signal.pause()"
    (sdk / "tools" / "qaic-util").write_text(f"#!{sys.executable}\n{program}\n")
    device_test.start()
    wait_until(lambda: pid_file.exists() and bool(pid_file.read_text()))
    device_test.stop()
    pid = int(pid_file.read_text())
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    device_test.start()
    assert row(database) == ("quarantined", "it is tested: wrong tokens", 0)
