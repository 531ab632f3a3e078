"""What placement is told of the machines, on real databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database, now
from farm.lifecycle import admission, leases, reaping
from farm.models import attempts, devices, hosts, jobs, nodes
from farm.plan import Plan, PlannedJob
from farm.records import Capacity
from farm.scheduling import capacity
from qeff_engine.spec import Stage


def add_jobs(database: Database, stage: Stage, number: int, *, num_cores: int = 0, num_devices: int = 0) -> list[int]:
    planned = tuple(
        PlannedJob(
            plan_key=f"{stage}{n}",
            stage=stage,
            spec={"n": n},
            label=f"{stage} {n}",
            inputs={},
            num_cores=num_cores,
            num_devices=num_devices,
        )
        for n in range(number)
    )
    testing.add_submission(database, Plan(jobs=planned, points=()))
    return testing.admit_all(database)


def room(database: Database) -> Capacity:
    with database.read() as connection:
        return capacity.capacity(connection, max_age_s=60.0)


def test_running_queued_and_draining_jobs_hold_their_devices_until_they_are_predicted_to_end(
    each_database: Database,
) -> None:
    host = testing.add_host(each_database, cores=(16, 16))
    running, lost, queued = add_jobs(each_database, Stage.RUN, 3, num_cores=4, num_devices=2)
    with each_database.write() as connection:
        connection.execute(sa.update(jobs).values(expected_s=50.0, reserved_s=100.0))
    for job_id, lease_s in ((running, 60.0), (lost, -1.0)):
        testing.claim(each_database, job_id, node_id=host.device_nodes[0], device_ids=host.device_ids, lease_s=lease_s)
    with each_database.write() as connection:
        reaping.lose(connection, lost, 1, reason="silent", term=None)
        admission.enqueue(
            connection, queued, node_id=host.device_nodes[1], queue="q", reason="", term=None,
            device_ids=host.device_ids[::-1],
        )  # fmt: skip
        at = now(connection)
        connection.execute(sa.update(attempts).values(started_at=at - 250.0))  # more than twice what was predicted
    for device in room(each_database).devices:
        ends = {holding.job_id: holding.ends_at for holding in device.holdings}
        assert {holding.job_id: holding.amount for holding in device.holdings} == {running: 4, lost: 4, queued: 4}
        assert ends == {
            running: pytest.approx(at + 150.0, abs=1.0),
            lost: None,
            queued: pytest.approx(at + 100.0, abs=20.0),
        }
        assert device.free_cores == 4


def test_an_exclusive_job_that_is_queued_leaves_nothing_of_its_device(each_database: Database) -> None:
    host = testing.add_host(each_database)
    (job_id,) = add_jobs(each_database, Stage.RUN, 1, num_cores=4, num_devices=1)
    with each_database.write() as connection:
        connection.execute(sa.update(jobs).values(exclusive=True))
        admission.enqueue(connection, job_id, node_id=host.device_nodes[0], queue="q", reason="", term=None)
    assert [device.free_cores for device in room(each_database).devices] == [0, 14]


def test_memory_of_running_and_queued_stages_is_taken(each_database: Database) -> None:
    host = testing.add_host(each_database, num_slots=4)
    known, unknown, queued = add_jobs(each_database, Stage.COMPILE, 3)
    with each_database.write() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.id != unknown).values(ram_bytes=1 << 30))
    for job_id in (known, unknown):
        testing.claim(each_database, job_id, node_id=host.host_node)
    with each_database.write() as connection:
        admission.enqueue(connection, queued, node_id=host.host_node, queue="q", reason="", term=None)
    (found,) = room(each_database).hosts
    assert found.free_slots == 1
    assert found.ram_bytes == leases.ram_budget(1 << 34)
    assert found.free_ram_bytes == found.ram_bytes - (2 << 30) - leases.ram_of_slot(ram_bytes=1 << 34, num_slots=4)


def test_memory_of_runs_is_taken_of_their_host_once_and_takes_no_slot(each_database: Database) -> None:
    host = testing.add_host(each_database, cores=(16, 16))
    running, lost, queued, unknown = add_jobs(each_database, Stage.RUN, 4, num_cores=2, num_devices=2)
    with each_database.write() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.id != unknown).values(ram_bytes=1 << 30, reserved_s=100.0))
    for job_id, lease_s in ((running, 60.0), (lost, -1.0), (unknown, 60.0)):
        testing.claim(each_database, job_id, node_id=host.device_nodes[0], device_ids=host.device_ids, lease_s=lease_s)
    with each_database.write() as connection:
        reaping.lose(connection, lost, 1, reason="silent", term=None)
        admission.enqueue(
            connection, queued, node_id=host.device_nodes[1], queue="q", reason="", term=None,
            device_ids=host.device_ids[::-1],
        )  # fmt: skip
    (found,) = room(each_database).hosts
    assert (found.free_slots, found.ram_bytes - found.free_ram_bytes) == (2, 3 << 30)
    assert {one.job_id: (one.amount, one.ram_bytes) for one in found.holdings} == dict.fromkeys(
        (running, lost, queued), (0, 1 << 30)
    )
    assert {one.job_id for one in found.holdings if one.ends_at is None} == {lost}
    with each_database.write() as connection:
        connection.execute(sa.update(nodes).where(nodes.c.id == host.host_node).values(stopped_at=now(connection)))
    without = room(each_database)
    assert without.hosts == ()
    assert [one.free_ram_bytes for one in without.silent_hosts] == [found.free_ram_bytes]


def test_labels_of_a_host_are_labels_of_its_devices_and_drained_places_are_none(each_database: Database) -> None:
    host = testing.add_host(each_database)
    testing.add_host(each_database, name="other")
    with each_database.write() as connection:
        connection.execute(sa.update(hosts).where(hosts.c.name == "box").values(labels=["lab"]))
        connection.execute(sa.update(hosts).where(hosts.c.name == "other").values(drained="new fans"))
        connection.execute(sa.update(devices).where(devices.c.id == host.device_ids[0]).values(labels=["fast"]))
        connection.execute(sa.update(devices).where(devices.c.id == host.device_ids[1]).values(drained="loud"))
    found = room(each_database)
    assert [(one.host, one.labels) for one in found.hosts] == [("box", ("lab",))]
    assert [(one.device_id, one.labels) for one in found.devices] == [(host.device_ids[0], ("fast", "lab"))]
