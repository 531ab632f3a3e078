"""The trace of a farm's database: what is in it, and that it can be read and replayed. On both databases."""

from __future__ import annotations

import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.lifecycle import jobs
from farm.models import jobs as job_rows
from farm.replay.ladder import LADDER
from farm.replay.recording import record
from farm.replay.simulating import simulate
from farm.replay.traces import Trace, from_lines, to_lines


def recorded(database: Database) -> Trace:
    """The trace as somebody reads it who was given the file."""
    with database.read() as connection:
        return from_lines(to_lines(record(connection, name="home")))


def work_off(database: Database, host: testing.FakeHost) -> None:
    """Do everything that there is to do, one job after another."""
    ready = sa.select(job_rows.c.id, job_rows.c.num_cores).where(job_rows.c.state == "ready").order_by(job_rows.c.id)
    while testing.admit_all(database):
        with database.read() as connection:
            found = connection.execute(ready).all()
        for row in found:
            node_id = host.device_nodes[0] if row.num_cores else host.host_node
            testing.finish(database, testing.claim(database, row.id, node_id=node_id))


def test_a_trace_has_the_machines_and_all_work_that_was_done(each_database: Database) -> None:
    host = testing.add_host(each_database, cores=(16, 14))
    testing.add_submission(each_database, owner="ada")
    work_off(each_database, host)
    testing.add_submission(each_database, owner="bob")  # all of it is cached: it took no place
    work_off(each_database, host)
    trace = recorded(each_database)
    assert [(task.stage, task.num_cores, task.owner) for task in trace.tasks] == [
        ("resolve", 0, "ada"),
        ("export", 0, "ada"),
        ("compile", 0, "ada"),
        ("run", 8, "ada"),
        ("compile", 0, "ada"),
        ("run", 14, "ada"),
    ]
    assert [task.after for task in trace.tasks] == [(), (1,), (2,), (1, 3), (2,), (1, 5)]
    assert [device.num_cores for device in trace.capacity.devices] == [16, 14]
    for policy in LADDER.values():
        outcome = simulate(trace, policy=policy)
        assert (outcome.runs.keys(), outcome.unplaceable) == ({task.id for task in trace.tasks}, {})


def test_work_that_was_done_anew_is_in_a_trace_once(each_database: Database) -> None:
    host = testing.add_host(each_database)
    first, _ = (testing.add_submission(each_database, testing.small_plan(cores=())) for _ in range(2))
    testing.admit_all(each_database)
    with each_database.read() as connection:
        leader = connection.scalar(sa.select(sa.func.min(job_rows.c.id)).where(job_rows.c.submission_id == first))
    assert leader is not None
    claimed = testing.claim(each_database, leader, node_id=host.host_node)
    with each_database.write() as connection:
        jobs.cancel(connection, leader)
    testing.finish(each_database, claimed, digest="for the follower")
    with each_database.write() as connection:
        jobs.retry(connection, leader, skip_cache=True)
    testing.admit_all(each_database)
    testing.finish(each_database, testing.claim(each_database, leader, node_id=host.host_node), digest="anew")
    assert [task.id for task in recorded(each_database).tasks] == [leader]


def test_the_trace_of_a_farm_that_has_done_nothing_is_empty(each_database: Database) -> None:
    assert recorded(each_database).tasks == ()
