"""Two writers that meet at the same jobs, on PostgreSQL, where they run side by side.

One has written and not yet committed when the other comes. The other must wait, see what the first did and do the
right thing about it: neither lose a result nor leave a job that nobody moves on.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.lifecycle import admission, attempts, jobs, transitions
from farm.models import jobs as job_rows
from farm.plan import Plan, PlannedJob, PlannedPoint
from farm.records import Usage
from farm.states import JobState
from qeff_engine.spec import Stage

_WAITERS = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")


def graph(**parents: str) -> Plan:
    """Jobs by name, each with the names of its parents."""
    planned = tuple(
        PlannedJob(plan_key=name, stage=Stage.COMPILE, spec={"name": name}, label=name, inputs={p: p for p in of})
        for name, of in ((name, text.split()) for name, text in parents.items())
    )
    return Plan(jobs=planned, points=(PlannedPoint(axes={}, plan_keys=tuple(parents)),))


def add(database: Database, plan: Plan) -> dict[str, int]:
    """Submit and admit a plan; ids by name."""
    submission_id = testing.add_submission(database, plan)
    testing.admit_all(database)
    with database.read() as connection:
        rows = connection.execute(
            sa.select(job_rows.c.label, job_rows.c.id).where(job_rows.c.submission_id == submission_id)
        )
        return {row.label: row.id for row in rows}


def row(database: Database, job_id: int) -> Any:
    with database.read() as connection:
        return connection.execute(sa.select(job_rows).where(job_rows.c.id == job_id)).one()


@contextlib.contextmanager
def second(
    database: Database, act: Callable[[sa.Connection], Any], *, waiters: int = 1
) -> Iterator[concurrent.futures.Future[Any]]:
    """Let another writer begin, and go on when it waits for the writer that this is called in."""

    def work() -> Any:
        with database.write() as connection:
            return act(connection)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        deadline = time.monotonic() + 30
        while not future.done():
            with database.read() as connection:
                if connection.execute(_WAITERS).scalar_one() >= waiters:
                    break
            assert time.monotonic() < deadline, "the second writer neither ended nor waited"
        yield future


def succeed(connection: sa.Connection, claimed: attempts.Claim) -> None:
    record = testing.artifact(f"digest of {claimed.label}")
    attempts.succeed(connection, claimed.job_id, claimed.attempt, artifact=record, figures={}, usage=Usage())


def test_a_result_is_kept_though_a_follower_is_cancelled_meanwhile(postgresql: Database) -> None:
    host = testing.add_host(postgresql)
    leader, follower = (add(postgresql, graph(a=""))["a"] for _ in range(2))
    claimed = testing.claim(postgresql, leader, node_id=host.host_node)
    with contextlib.ExitStack() as stack:
        with postgresql.write() as connection:
            jobs.cancel(connection, follower)
            other = stack.enter_context(second(postgresql, lambda c: succeed(c, claimed)))
        other.result()
    assert (row(postgresql, leader).state, row(postgresql, follower).state) == ("succeeded", "cancelled")


def test_work_that_is_just_being_finished_is_not_done_again(postgresql: Database) -> None:
    host = testing.add_host(postgresql)
    first = add(postgresql, graph(a=""))["a"]
    claimed = testing.claim(postgresql, first, node_id=host.host_node)
    again = testing.add_submission(postgresql, graph(a=""))
    key = row(postgresql, first).action_key
    with contextlib.ExitStack() as stack:
        with postgresql.write() as connection:
            succeed(connection, claimed)
            job_id = connection.execute(sa.select(job_rows.c.id).where(job_rows.c.submission_id == again)).scalar_one()
            other = stack.enter_context(
                second(postgresql, lambda c: admission.admit(c, job_id, action_key=key, parts={}, term=None))
            )
        assert other.result() is JobState.CACHED


def test_an_input_that_is_done_while_its_child_is_retried_counts(postgresql: Database) -> None:
    host = testing.add_host(postgresql)
    ids = add(postgresql, graph(a="", b="", child="a b"))
    claimed = testing.claim(postgresql, ids["a"], node_id=host.host_node)
    with postgresql.write() as connection:
        jobs.cancel(connection, ids["b"])
    with contextlib.ExitStack() as stack:
        with postgresql.write() as connection:
            succeed(connection, claimed)
            other = stack.enter_context(second(postgresql, lambda c: jobs.retry(c, ids["b"])))
        other.result()
    assert (row(postgresql, ids["child"]).state, row(postgresql, ids["child"]).remaining) == ("waiting", 1)


def test_an_input_that_fails_while_its_child_is_retried_blocks_it(postgresql: Database) -> None:
    host = testing.add_host(postgresql)
    ids = add(postgresql, graph(a="", b="", child="a b"))
    claimed = testing.claim(postgresql, ids["a"], node_id=host.host_node)
    with postgresql.write() as connection:
        jobs.cancel(connection, ids["b"])

    def fail(connection: sa.Connection) -> JobState:
        return attempts.fail(
            connection, claimed.job_id, claimed.attempt, failure_class="bug", message="why", usage=Usage()
        )

    with contextlib.ExitStack() as stack:
        with postgresql.write() as connection:
            jobs.retry(connection, ids["b"])
            other = stack.enter_context(second(postgresql, fail))
        assert other.result() is JobState.FAILED
    assert row(postgresql, ids["child"]).state == "blocked"


def test_who_ends_a_job_and_who_cancels_its_submission_do_not_wait_for_each_other(postgresql: Database) -> None:
    host = testing.add_host(postgresql)
    ids = add(postgresql, graph(a="", x="a", y="a"))
    claimed = testing.claim(postgresql, ids["a"], node_id=host.host_node)
    submission_id = row(postgresql, ids["a"]).submission_id
    with contextlib.ExitStack() as stack:
        with postgresql.write() as connection:
            # Both stop at the child, each with what it has locked so far.
            connection.execute(sa.select(job_rows.c.id).where(job_rows.c.id == ids["x"]).with_for_update())
            ended = stack.enter_context(second(postgresql, lambda c: succeed(c, claimed)))
            cancelled = stack.enter_context(
                second(postgresql, lambda c: jobs.cancel_submission(c, submission_id), waiters=2)
            )
        ended.result()
        assert cancelled.result() == {"cancelled": 2, "stopping": 0, "ended": 1}


@pytest.mark.parametrize("first", ["a", "b"])
def test_who_places_jobs_and_who_cancels_their_submission_do_not_wait_for_each_other(
    postgresql: Database, first: str
) -> None:
    host = testing.add_host(postgresql)
    ids = add(postgresql, graph(a="", b=""))
    submission_id = row(postgresql, ids["a"]).submission_id

    def enqueue(connection: sa.Connection, name: str) -> None:
        admission.enqueue(connection, ids[name], node_id=host.host_node, queue="q", reason="", term=None)

    with contextlib.ExitStack() as stack:
        with postgresql.write() as connection:
            transitions.hold_graph(connection, shared=True)
            enqueue(connection, first)
            cancelled = stack.enter_context(second(postgresql, lambda c: jobs.cancel_submission(c, submission_id)))
            enqueue(connection, "b" if first == "a" else "a")
        assert cancelled.result() == {"cancelled": 2, "stopping": 0, "ended": 0}
