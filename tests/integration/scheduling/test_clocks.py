"""Four clocks, none of which counts what belongs to another: waiting, running, heartbeat, the whole."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database, now
from farm.lifecycle import admission, attempts, expiry, jobs, steering
from farm.models import attempts as attempt_rows
from farm.models import core_leases
from farm.models import jobs as job_rows
from farm.records import Limits, Usage
from farm.scheduling import maintenance
from farm.states import JobState
from qeff_engine.errors import FailureClass
from tests.proof import invariants

LONG_S = 1000.0


def submit(database: Database, *, tag: str = "", **limits: float) -> dict[str, int]:
    """Submit a small plan with limits, and admit what may be; ids by label."""
    with database.write() as connection:
        submission_id = jobs.submit(
            connection,
            testing.small_plan(cores=(8,), tag=tag),
            name="test",
            owner="ada",
            request={},
            limits=Limits(**limits),
        )
    testing.admit_all(database)
    with database.read() as connection:
        rows = connection.execute(
            sa.select(job_rows.c.label, job_rows.c.id).where(job_rows.c.submission_id == submission_id)
        )
        return {row.label: row.id for row in rows}


def expire(database: Database) -> int:
    return maintenance.expire(database, limit=100, term=None)


def states(database: Database, ids: dict[str, int]) -> dict[str, str]:
    with database.read() as connection:
        by_id = dict(map(tuple, connection.execute(sa.select(job_rows.c.id, job_rows.c.state))))
    return {label: by_id[job_id] for label, job_id in ids.items()}


def failure(database: Database, job_id: int) -> tuple[str, str]:
    with database.read() as connection:
        query = sa.select(job_rows.c.failure_class, job_rows.c.failure_message).where(job_rows.c.id == job_id)
        return tuple(connection.execute(query).one())


def set_back(database: Database, seconds: float, *columns: sa.Column[float]) -> None:
    """As if something had been so many seconds earlier."""
    with database.write() as connection:
        for column in columns:
            connection.execute(sa.update(column.table).values({column: column - seconds}))


def test_a_job_that_waits_too_long_for_a_place_fails_and_blocks_what_needs_it(each_database: Database) -> None:
    ids = submit(each_database, wait_limit_s=LONG_S)
    assert expire(each_database) == 0
    set_back(each_database, LONG_S + 1, job_rows.c.ready_at)
    assert expire(each_database) == 1
    assert states(each_database, ids) == {
        "resolve": "failed",
        "export": "blocked",
        "compile 8 cores": "blocked",
        "run 8 cores": "blocked",
    }
    assert failure(each_database, ids["resolve"]) == ("timeout", "It waited longer than 16m40s for a place.")
    assert expire(each_database) == 0
    invariants.check(each_database)


def test_running_and_the_pause_after_a_failure_are_no_waiting(each_database: Database) -> None:
    host = testing.add_host(each_database)
    job_id = submit(each_database, wait_limit_s=LONG_S)["resolve"]
    claimed = testing.claim(each_database, job_id, node_id=host.host_node)
    set_back(each_database, LONG_S + 1, job_rows.c.ready_at)
    assert expire(each_database) == 0
    with each_database.write() as connection:
        failed = FailureClass.INFRASTRUCTURE
        attempts.fail(connection, job_id, claimed.attempt, failure_class=failed, message="test", usage=Usage())
    assert expire(each_database) == 0
    set_back(each_database, LONG_S + 1, attempt_rows.c.finished_at)
    assert expire(each_database) == 0
    set_back(each_database, LONG_S + 60, job_rows.c.not_before)
    assert expire(each_database) == 1


def test_a_pause_is_no_waiting(each_database: Database) -> None:
    submit(each_database, wait_limit_s=LONG_S)
    with each_database.write() as connection:
        steering.pause(connection, 1, by="ada")
    set_back(each_database, LONG_S + 1, job_rows.c.ready_at)
    assert expire(each_database) == 0
    with each_database.write() as connection:
        assert steering.resume(connection, 1)
    assert expire(each_database) == 0
    set_back(each_database, LONG_S + 1, job_rows.c.not_before)
    assert expire(each_database) == 1


def test_all_that_has_not_begun_fails_when_the_deadline_has_passed(each_database: Database) -> None:
    host = testing.add_host(each_database)
    ids = submit(each_database, deadline_s=LONG_S)
    testing.finish(each_database, testing.claim(each_database, ids["resolve"], node_id=host.host_node))
    testing.admit_all(each_database)
    with each_database.write() as connection:
        node_id, queue = host.host_node, host.host_queue
        admission.enqueue(connection, ids["export"], node_id=node_id, queue=queue, reason="test", term=None)
    assert expire(each_database) == 0
    set_back(each_database, LONG_S + 1, job_rows.c.deadline_at)
    assert expire(each_database) == 3
    assert states(each_database, ids) == {
        "resolve": "succeeded",
        "export": "failed",
        "compile 8 cores": "failed",
        "run 8 cores": "failed",
    }
    assert failure(each_database, ids["run 8 cores"]) == ("timeout", expiry.DEADLINE_PASSED)
    invariants.check(each_database)


def test_whoever_shares_the_work_of_a_job_that_is_too_late_goes_on_without_it(each_database: Database) -> None:
    late = submit(each_database, deadline_s=LONG_S)
    other = submit(each_database)
    set_back(each_database, LONG_S + 1, job_rows.c.deadline_at)
    assert expire(each_database) == 4
    testing.admit_all(each_database)
    assert states(each_database, late)["resolve"] == "failed"
    assert states(each_database, other)["resolve"] == "ready"


def test_a_retry_after_the_deadline_has_none(each_database: Database) -> None:
    ids = submit(each_database, deadline_s=LONG_S)
    set_back(each_database, LONG_S + 1, job_rows.c.deadline_at)
    expire(each_database)
    with each_database.write() as connection:
        jobs.retry(connection, ids["resolve"])
    assert expire(each_database) == 0
    assert states(each_database, ids)["resolve"] == "waiting"


@pytest.mark.parametrize(
    ("limits", "default", "expected"),
    [
        ({}, {}, (None, None)),
        ({}, {"resolve": 50.0}, (50.0, None)),
        ({"run_limit_s": 40.0}, {"resolve": 50.0}, (40.0, None)),
        ({"run_limit_s": 40.0, "deadline_s": 30.0}, {}, (40.0, 30.0)),
    ],
)
def test_a_claim_says_how_long_it_may_run(
    each_database: Database,
    limits: dict[str, float],
    default: dict[str, float],
    expected: tuple[float | None, float | None],
) -> None:
    host = testing.add_host(each_database)
    job_id = submit(each_database, **limits)["resolve"]
    with each_database.write() as connection:
        attempt = admission.enqueue(
            connection, job_id, node_id=host.host_node, queue=host.host_queue, reason="test", term=None
        )
    with each_database.write() as connection:
        claimed = attempts.claim(
            connection, job_id, attempt, node_id=host.host_node, lease_s=60.0, run_limits_s=default
        )
    left_s = None if claimed.left_s is None else pytest.approx(claimed.left_s, abs=20.0)
    assert (claimed.run_limit_s, left_s) == expected
    with each_database.read() as connection:
        run_until, started_at = connection.execute(sa.select(attempt_rows.c.run_until, attempt_rows.c.started_at)).one()
    ends = [limit for limit in expected if limit is not None]
    assert run_until == (pytest.approx(started_at + min(ends), abs=20.0) if ends else None)


def test_an_attempt_that_its_node_does_not_end_is_taken_as_a_timeout_and_its_cores_drain(
    each_database: Database,
) -> None:
    host = testing.add_host(each_database)
    ids = submit(each_database, run_limit_s=LONG_S)
    for label in ("resolve", "export", "compile 8 cores"):
        testing.finish(each_database, testing.claim(each_database, ids[label], node_id=host.host_node))
        testing.admit_all(each_database)
    for state in (JobState.READY, JobState.FAILED):
        claimed = testing.claim(each_database, ids["run 8 cores"], node_id=host.device_nodes[0])
        set_back(each_database, LONG_S + 1, attempt_rows.c.run_until)
        assert maintenance.end_overdue(each_database, grace_s=60.0, term=None) == 0  # its own node has the first word
        assert maintenance.end_overdue(each_database, grace_s=0.0, term=None) == 1
        assert states(each_database, ids)["run 8 cores"] == state
        with each_database.read() as connection:
            assert set(connection.scalars(sa.select(core_leases.c.state))) == {"draining"}
        invariants.check(each_database)
        with each_database.write() as connection:
            attempts.confirm_gone(connection, host_id=host.host_id, job_id=claimed.job_id, attempt=claimed.attempt)
    assert failure(each_database, ids["run 8 cores"]) == (
        "timeout",
        "Its time was over, and its node did not end it.",
    )


def test_what_is_left_is_counted_by_the_nodes_own_clock(each_database: Database) -> None:
    host = testing.add_host(each_database)
    job_id = submit(each_database, run_limit_s=LONG_S)["resolve"]
    claimed = testing.claim(each_database, job_id, node_id=host.host_node)
    set_back(each_database, 10 * LONG_S, attempt_rows.c.run_until)  # as if the database's clock had jumped
    with each_database.write() as connection:
        attempts.heartbeat(connection, job_id, claimed.attempt, lease_s=60.0, run_left_s=500.0)
    assert maintenance.end_overdue(each_database, grace_s=0.0, term=None) == 0


def test_timeouts_and_lost_workers_are_told_apart(each_database: Database) -> None:
    host = testing.add_host(each_database)
    silent, slow = (submit(each_database, tag=tag)["resolve"] for tag in ("a", "b"))
    for job_id, run_until, lease_s in ((silent, LONG_S, -1.0), (slow, -LONG_S, 60.0)):
        testing.claim(each_database, job_id, node_id=host.host_node, lease_s=lease_s)
        with each_database.write() as connection:
            mine = attempt_rows.c.job_id == job_id
            connection.execute(sa.update(attempt_rows).where(mine).values(run_until=now(connection) + run_until))
    assert maintenance.reap(each_database, lease_s=60.0, term=None) == 1
    assert maintenance.end_overdue(each_database, grace_s=0.0, term=None) == 1
    with each_database.read() as connection:
        query = sa.select(attempt_rows.c.job_id, attempt_rows.c.failure_class)
        assert dict(map(tuple, connection.execute(query))) == {silent: "worker_lost", slow: "timeout"}
