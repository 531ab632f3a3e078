"""Sweeps with thousands of jobs: everything that ends or revives them is a few statements, on real databases.

Nobody else can write to SQLite meanwhile, and both databases limit the parameters of one statement.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.lifecycle import attempts, jobs
from farm.models import events
from farm.models import jobs as job_rows
from farm.records import Usage
from qeff_engine.errors import FailureClass

POINTS = 600  # more than a statement takes at once, and a last one that is not full
JOBS = 2 + 2 * POINTS


@contextlib.contextmanager
def few_statements(database: Database) -> Iterator[None]:
    """Fail when what is done takes a statement for each of a tenth of the jobs."""
    count = 0

    def add(*_: object) -> None:
        nonlocal count
        count += 1

    sa.event.listen(database.engine, "before_cursor_execute", add)
    try:
        yield
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", add)
    assert 0 < count < JOBS / 10


def states(database: Database, submission_id: int) -> dict[str, int]:
    with database.read() as connection:
        return collections.Counter(
            connection.scalars(sa.select(job_rows.c.state).where(job_rows.c.submission_id == submission_id))
        )


def last_events(database: Database) -> dict[str, int]:
    """How many jobs have which transition as their last."""
    last = sa.select(sa.func.max(events.c.id)).group_by(events.c.job_id)
    with database.read() as connection:
        return collections.Counter(connection.scalars(sa.select(events.c.transition).where(events.c.id.in_(last))))


@pytest.fixture
def sweep(each_database: Database) -> tuple[Database, testing.FakeHost, int]:
    host = testing.add_host(each_database)
    with few_statements(each_database):
        submission_id = testing.add_submission(each_database, testing.small_plan(cores=tuple(range(1, POINTS + 1))))
    testing.admit_all(each_database)
    return each_database, host, submission_id


def test_an_input_of_thousands_that_is_done_counts_for_each(sweep: tuple[Database, testing.FakeHost, int]) -> None:
    database, host, _ = sweep
    testing.finish(database, testing.claim(database, 1, node_id=host.host_node))
    testing.admit_all(database)
    export = testing.claim(database, 2, node_id=host.host_node)
    with few_statements(database):
        testing.finish(database, export)
    with database.read() as connection:
        remaining = connection.execute(sa.select(job_rows.c.stage, job_rows.c.remaining).distinct()).all()
    assert {tuple(row) for row in remaining} == {("resolve", 0), ("export", 0), ("compile", 0), ("run", 1)}


def test_an_input_of_thousands_that_fails_blocks_each_and_a_retry_revives_each(
    sweep: tuple[Database, testing.FakeHost, int],
) -> None:
    database, host, submission_id = sweep
    claimed = testing.claim(database, 1, node_id=host.host_node)
    with few_statements(database), database.write() as connection:
        attempts.fail(connection, 1, claimed.attempt, failure_class=FailureClass.BUG, message="why", usage=Usage())
    assert states(database, submission_id) == {"failed": 1, "blocked": JOBS - 1}
    with few_statements(database), database.write() as connection:
        jobs.retry(connection, JOBS)  # a run, through its inputs
    assert states(database, submission_id) == {"waiting": JOBS}
    assert last_events(database) == {"retry": JOBS}
    with database.read() as connection:
        remaining = collections.Counter(connection.scalars(sa.select(job_rows.c.remaining)))
    assert remaining == {0: 1, 1: 1 + POINTS, 2: POINTS}


def test_a_submission_of_thousands_is_cancelled_and_works_on_for_its_followers(
    sweep: tuple[Database, testing.FakeHost, int],
) -> None:
    database, _, submission_id = sweep
    other = testing.add_submission(database)
    testing.admit_all(database)
    with database.read() as connection:
        assert list(connection.scalars(sa.select(job_rows.c.leader_id).where(job_rows.c.leader_id.is_not(None)))) == [1]
    with few_statements(database), database.write() as connection:
        assert jobs.cancel_submission(connection, submission_id) == {"cancelled": JOBS, "stopping": 0, "ended": 0}
    assert states(database, submission_id) == {"cancelled": JOBS - 1, "ready": 1}
    assert last_events(database) == {"cancel": JOBS - 1, "unsubscribe": 1, "follow": 1, "submit": 5}
    testing.admit_all(database)
    assert states(database, other) == {"waiting": 6}


def test_many_followers_are_served_at_once(each_database: Database) -> None:
    number = 520
    host = testing.add_host(each_database)
    plan = testing.small_plan(cores=())
    with each_database.write() as connection:
        for _ in range(number):
            jobs.submit(connection, plan, name="n", owner="o", request={})
    testing.admit_all(each_database)
    with each_database.read() as connection:
        leader = connection.execute(sa.select(job_rows.c.id).where(job_rows.c.state == "ready")).scalar_one()
    claimed = testing.claim(each_database, leader, node_id=host.host_node)
    with few_statements(each_database):
        testing.finish(each_database, claimed)
    with each_database.read() as connection:
        rows = connection.execute(
            sa.select(job_rows.c.stage, job_rows.c.state, job_rows.c.remaining, sa.func.count()).group_by(
                job_rows.c.stage, job_rows.c.state, job_rows.c.remaining
            )
        )
        assert {tuple(row) for row in rows} == {
            ("resolve", "succeeded", 0, 1),
            ("resolve", "cached", 0, number - 1),
            ("export", "waiting", 0, number),
        }
