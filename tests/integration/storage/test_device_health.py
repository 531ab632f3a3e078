"""Devices that go, fail, come back and are used by others, as the database knows it."""

from __future__ import annotations

import dataclasses

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.fleet import devices
from farm.lifecycle import health
from farm.models import devices as device_rows
from farm.records import DeviceRecord

PLAIN = DeviceRecord(
    board_serial="b1", pci_address="0000:01:00.0", qid=0, sku="ultra", num_cores=16, dram_mb=1, simulated=True
)
AT_ONCE = health.Quarantine(cool_down_s=0.0)
OTHER = dataclasses.replace(PLAIN, pci_address="0000:02:00.0", qid=1)


@dataclasses.dataclass
class Host:
    """A host that is checked by the test."""

    database: Database
    host_id: int

    def check(self, *found: DeviceRecord) -> list[int]:
        with self.database.write() as connection:
            return devices.register_devices(connection, host_id=self.host_id, found=found)

    def states(self) -> list[tuple[int, str, int]]:
        """Number, health and faults of each device."""
        with self.database.read() as connection:
            columns = (device_rows.c.qid, device_rows.c.health, device_rows.c.faults)
            return [tuple(row) for row in connection.execute(sa.select(*columns).order_by(device_rows.c.id))]

    def is_due(self, device_id: int) -> bool:
        with self.database.read() as connection:
            return health.is_due(connection, device_id)

    def passes(self, device_id: int) -> None:
        with self.database.write() as connection:
            health.passed(connection, device_id)

    def set_rest(self, device_id: int, until: float | None) -> None:
        with self.database.write() as connection:
            found = device_rows.c.id == device_id
            connection.execute(sa.update(device_rows).where(found).values(quarantined_until=until))

    def reason(self, device_id: int) -> str:
        with self.database.read() as connection:
            query = sa.select(device_rows.c.health_reason).where(device_rows.c.id == device_id)
            return str(connection.scalar(query))


@pytest.fixture
def host(each_database: Database) -> Host:
    with each_database.write() as connection:
        host_id = devices.register_host(
            connection, name="box", num_cpus=1, ram_bytes=1, num_slots=1, toolchain={"engine": "1"}
        )
    return Host(database=each_database, host_id=host_id)


def test_a_device_is_known_again_by_board_and_address_whatever_its_number(host: Host) -> None:
    first, second = host.check(PLAIN, OTHER)
    assert host.check(OTHER) == [second]
    assert host.states() == [(0, "lost", 1), (1, "ready", 0)]
    swapped = dataclasses.replace(PLAIN, qid=1), dataclasses.replace(OTHER, qid=0)
    assert host.check(*swapped) == [first, second]
    assert host.states() == [(1, "quarantined", 1), (0, "ready", 0)]


def test_a_number_stands_for_a_device_until_it_moves_or_another_takes_its_place(host: Host) -> None:
    first, second = host.check(PLAIN, OTHER)

    def displaced() -> list[bool]:
        with host.database.read() as connection:
            numbers = ((first, 0), (second, 1))
            return [devices.is_displaced(connection, device_id, qid=qid) for device_id, qid in numbers]

    assert displaced() == [False, False]
    host.check(OTHER)
    assert displaced() == [False, False], "the one that is away leaves a gap"
    host.check(dataclasses.replace(OTHER, qid=0))
    assert displaced() == [True, True], "the one behind it has moved up"
    host.check(PLAIN, OTHER)
    assert displaced() == [False, False]


def test_one_in_error_is_known_by_its_address_alone(host: Host) -> None:
    (device_id,) = host.check(PLAIN)
    broken = dataclasses.replace(PLAIN, board_serial="", sku="", num_cores=0, dram_mb=0, status="Error")
    assert host.check(broken) == [device_id]
    assert host.states() == [(0, "quarantined", 1)]
    assert host.reason(device_id) == "qaic-util says Error"


def test_one_that_was_never_ready_is_nothing_yet(host: Host) -> None:
    assert host.check(dataclasses.replace(PLAIN, board_serial="", status="Error")) == []
    assert host.states() == []


def test_a_devices_own_node_says_nothing_of_the_others(host: Host) -> None:
    host.check(PLAIN, OTHER)
    with host.database.write() as connection:
        devices.register_devices(connection, host_id=host.host_id, found=[PLAIN], complete=False)
    assert [row[1] for row in host.states()] == ["ready", "ready"]


def test_failing_under_attempts_three_times_in_a_row_earns_a_rest(host: Host) -> None:
    (device_id,) = host.check(PLAIN)
    for faults in (1, 2, 3):
        with host.database.write() as connection:
            assert health.count_fault(connection, [device_id], reason="test", quarantine=AT_ONCE) == [device_id]
            assert health.count_fault(connection, [], reason="test", quarantine=AT_ONCE) == []
        assert host.states() == [(0, "quarantined", faults)]
        assert host.is_due(device_id) == (faults < 3)
        host.passes(device_id)
    assert host.states() == [(0, "quarantined", 3)], "it rests, and who says that it passed is too early"
    assert host.reason(device_id) == "it failed 3 times in a row, rests and is tested then: test"
    host.check(PLAIN)
    assert host.states() == [(0, "quarantined", 3)]


def test_one_that_failed_gets_work_again_when_it_has_cooled_down_and_passed_a_test(host: Host) -> None:
    (device_id,) = host.check(PLAIN)
    with host.database.write() as connection:
        health.count_fault(connection, [device_id], reason="gone", quarantine=health.Quarantine(cool_down_s=60))
    assert host.reason(device_id) == "it failed, cools down and is tested then: gone"
    assert not host.is_due(device_id)
    host.set_rest(device_id, 0.0)
    assert host.is_due(device_id)
    host.check(PLAIN)
    assert host.states() == [(0, "quarantined", 1)], "a check does not do"
    host.passes(device_id)
    assert (host.states(), host.reason(device_id)) == ([(0, "ready", 1)], "")
    assert not host.is_due(device_id)


def test_one_whose_test_fails_rests_as_one_that_failed_often(host: Host) -> None:
    (device_id,) = host.check(PLAIN)
    with host.database.write() as connection:
        health.suspect(connection, [device_id], reason="wrong tokens")
    assert (host.states(), host.reason(device_id)) == ([(0, "quarantined", 0)], "it is tested: wrong tokens")
    assert host.is_due(device_id)
    with host.database.write() as connection:
        health.failed(connection, device_id, reason="it computes wrong", quarantine=health.Quarantine())
    assert host.states() == [(0, "quarantined", 3)]
    assert host.reason(device_id) == "its test failed, it rests and is tested again: it computes wrong"
    assert not host.is_due(device_id)
    with host.database.write() as connection:
        health.failed(connection, device_id, reason="late", quarantine=health.Quarantine())
    assert host.states() == [(0, "quarantined", 3)], "it was not to be tested"


def test_one_that_is_ill_is_not_tested(host: Host) -> None:
    (device_id,) = host.check(PLAIN)
    host.check(dataclasses.replace(PLAIN, status="Error"))
    host.set_rest(device_id, None)
    assert not host.is_due(device_id)
    host.check(PLAIN)
    host.set_rest(device_id, None)
    assert host.is_due(device_id)


def test_a_run_that_succeeds_ends_the_row(each_database: Database) -> None:
    farm = testing.add_host(each_database, cores=(16,))
    testing.add_submission(each_database, testing.small_plan(cores=(8,)))
    with each_database.write() as connection:
        health.count_fault(connection, farm.device_ids, reason="test", quarantine=AT_ONCE)
        health.passed(connection, farm.device_ids[0])
    faults = []
    for node_id in (*[farm.host_node] * 3, farm.device_nodes[0]):
        (job_id,) = testing.admit_all(each_database)
        testing.finish(each_database, testing.claim(each_database, job_id, node_id=node_id))
        with each_database.read() as connection:
            faults.append(connection.scalar(sa.select(device_rows.c.faults)))
    assert faults == [1, 1, 1, 0]


def test_cores_that_somebody_else_uses_are_noted_with_the_device(host: Host) -> None:
    (device_id,) = host.check(PLAIN)
    for free, reason in ((12, "qaic-util says 12 cores are free, the farm's books say 16"), (16, "")):
        with host.database.write() as connection:
            wrong = devices.note_foreign_use(connection, {device_id: free})
        assert wrong == ({device_id: reason} if reason else {})
        assert host.reason(device_id) == reason


def test_what_has_become_of_a_device_under_its_attempts(host: Host) -> None:
    ids = host.check(PLAIN, OTHER)
    asked = dict(zip(ids, (0, 1), strict=True))
    broken = dataclasses.replace(OTHER, board_serial="", status="Error")
    for found, said in (
        ((PLAIN, OTHER), {}),
        ((PLAIN,), {ids[1]: "Device 1 disappeared while it ran."}),
        ((PLAIN, broken), {ids[1]: "Device 1 failed while it ran: qaic-util says Error."}),
        ((dataclasses.replace(PLAIN, qid=3), OTHER), {ids[0]: "Device 0 was reset while it ran: it came back as 3."}),
    ):
        host.check(*found)
        with host.database.read() as connection:
            assert health.gone_under(connection, asked) == said


def test_a_host_whose_tool_does_not_answer_gets_no_runs_until_it_does(host: Host) -> None:
    (device_id,) = host.check(PLAIN)
    with host.database.write() as connection:
        health.not_answering(connection, host_id=host.host_id, reason="it hangs")
    assert (host.states(), host.reason(device_id)) == ([(0, "quarantined", 0)], "it hangs")
    host.check(PLAIN)
    assert host.is_due(device_id)
    host.passes(device_id)
    assert host.states() == [(0, "ready", 0)]
