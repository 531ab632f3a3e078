"""A host's look at its devices, with the SDK's own tool: simulated devices that go, fail, hang and come back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from farm import settings as farm_settings
from farm import testing
from farm.db import Database
from farm.fleet import devices
from farm.lifecycle import health
from farm.models import devices as device_rows
from farm.states import JobState
from qeff_engine.sdk import location
from tests.integration.attempt_node import alive, attempt_node, run_job
from workers import checkup, discovery
from workers.checkup import Checkup


class Sdk:
    """A simulated SDK whose devices the test moves."""

    def __init__(self, root: Path) -> None:
        self.root = root
        command = [sys.executable, "-m", "qeff_engine.simulated_sdk", "install", str(root), "--devices", "ultra:2"]
        subprocess.run(command, check=True, capture_output=True)
        self._list = root / "devices.json"
        self.all = json.loads(self._list.read_text())["devices"]

    def have(self, *found: dict[str, object]) -> None:
        self._list.write_text(json.dumps({"devices": found}))

    def break_device(self, number: int) -> None:
        """What the kernel answers from now on when the device is opened is an error."""
        (self.root / "state" / self.all[number]["pci_address"].replace(":", "-") / "lock").mkdir(parents=True)

    def play(self, program: str) -> None:
        """Put a program in place of the tool."""
        (self.root / "tools" / "qaic-util").write_text(f"#!{sys.executable}\n{program}\n")


@pytest.fixture
def sdk(tmp_path: Path) -> Sdk:
    return Sdk(tmp_path / "sdk")


@pytest.fixture
def database() -> Iterator[Database]:
    with testing.fresh_database() as found:
        yield found


@pytest.fixture
def look(sdk: Sdk, database: Database, tmp_path: Path) -> Checkup:
    settings = farm_settings.load(home=str(tmp_path), environ={})
    with database.write() as connection:
        host_id = devices.register_host(connection, name="h", num_cpus=1, ram_bytes=1, num_slots=1, toolchain={})
    found = location.find(sdk.root)
    checked = Checkup(database, settings=settings, sdk=found, host_id=host_id)
    checked.look()
    return checked


def states(database: Database) -> list[tuple[int, str, str]]:
    with database.read() as connection:
        columns = (device_rows.c.qid, device_rows.c.health, device_rows.c.health_reason)
        return [tuple(row) for row in connection.execute(sa.select(*columns).order_by(device_rows.c.id))]


def test_devices_that_go_fail_and_come_back_under_another_number(sdk: Sdk, database: Database, look: Checkup) -> None:
    assert states(database) == [(0, "ready", ""), (1, "ready", "")]
    first, second = sdk.all
    sdk.have(second)
    look.look()
    assert states(database) == [(0, "lost", "its host does not find it"), (1, "ready", "")]
    sdk.have({**second, "qid": 0}, {**first, "qid": 1})
    look.look()
    assert states(database) == [(1, "quarantined", "it failed, cools down and is tested then"), (0, "ready", "")]
    sdk.break_device(0)
    look.look()
    assert states(database) == [(1, "quarantined", "qaic-util says Error"), (0, "ready", "")]


def test_a_tool_that_hangs_or_fails_costs_work_only_when_it_goes_on(
    sdk: Sdk, database: Database, look: Checkup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "_LIMIT_S", 0.3)
    tool = (sdk.root / "tools" / "qaic-util").read_text()
    sdk.play("import signal; signal.pause()")
    look.look()
    sdk.play("raise SystemExit(3)")
    look.look()
    assert [row[1] for row in states(database)] == ["ready", "ready"]
    look.look()
    assert [row[1] for row in states(database)] == ["quarantined", "quarantined"]
    assert "exit code 3" in states(database)[0][2]
    (sdk.root / "tools" / "qaic-util").write_text(tool)
    monkeypatch.undo()
    look.look()
    with database.read() as connection:
        assert [health.is_due(connection, device_id) for device_id in (1, 2)] == [True, True]


def test_cores_that_are_used_behind_the_farms_back_are_noted_at_the_second_look(
    sdk: Sdk, database: Database, look: Checkup
) -> None:
    program = (
        "import sys; from pathlib import Path; from qeff_engine.simulated_sdk import devices, occupancy;"
        "root = Path(sys.argv[1]); amounts = occupancy.Amounts(cores=4, dram_mb=1, channels=1);"
        "held = occupancy.take(root, device=devices.load(root)[0], amounts=amounts);"
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(sdk.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        look.look()
        assert states(database)[0] == (0, "ready", "")
        look.look()
        assert states(database)[0] == (0, "ready", "qaic-util says 12 cores are free, the farm's books say 16")
        other.communicate()
    look.look()
    assert states(database)[0] == (0, "ready", "")


def test_a_device_is_found_by_what_it_is_and_not_by_its_number(sdk: Sdk) -> None:
    first, second = sdk.all
    identity = f"{second['board_serial']}/{second['pci_address']}"
    sdk.have({**second, "qid": 0}, {**first, "qid": 1})
    assert discovery.await_device(location.find(sdk.root), identity=identity, look_s=0.01).qid == 0


def test_a_run_whose_device_disappears_is_ended_as_device_lost(tmp_path: Path) -> None:
    with attempt_node(tmp_path) as node:
        pids_file = tmp_path / "pids"
        job_id = run_job(node, f"tool={pids_file}")
        with node.running(job_id, until=pids_file) as said, node.database.write() as connection:
            devices.register_devices(connection, host_id=node.host.host_id, found=[])
        assert alive(*map(int, said.split())) == []
        (attempt,) = node.attempts(job_id)
        assert (attempt.state, attempt.failure_class) == ("failed", "device_lost")
        assert attempt.message == "Device 0 disappeared while it ran."
        assert node.job(job_id).state is JobState.READY
        assert node.held() == (0, 0)
        with node.database.read() as connection:
            assert connection.scalar(sa.select(device_rows.c.faults)) == 1  # by the check, and not once more
