"""The state machine against real databases: guards, fences, events, and what an end means for others."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database, now
from farm.errors import NoCapacity, NotFound, Refused, StaleTransition
from farm.lifecycle import admission, attempts, failures, jobs, leadership, leases, outbox, reaping, transitions
from farm.models import actions, core_leases, events, host_leases
from farm.models import attempts as attempt_rows
from farm.models import jobs as job_rows
from farm.records import Usage
from farm.scheduling import candidates
from farm.states import TRANSITIONS, JobState
from qeff_engine.errors import FailureClass

NAMES = sorted({name for _, name, _ in TRANSITIONS})


def states(database: Database) -> dict[str, str]:
    """State by label; of several submissions the last one's."""
    with database.read() as connection:
        rows = connection.execute(sa.select(job_rows.c.label, job_rows.c.state).order_by(job_rows.c.id))
        return {row.label: row.state for row in rows}


def job_ids(database: Database, submission_id: int) -> dict[str, int]:
    """Job id by label."""
    with database.read() as connection:
        rows = connection.execute(
            sa.select(job_rows.c.label, job_rows.c.id).where(job_rows.c.submission_id == submission_id)
        )
        return {row.label: row.id for row in rows}


def run_all(database: Database, host: testing.FakeHost) -> int:
    """Carry out everything that can be carried out; returns how many attempts it took."""
    count = 0
    while True:
        admitted = testing.admit_all(database)
        with database.read() as connection:
            ready = candidates.ready(connection, limit=100)
        if not ready and not admitted:
            return count
        for job in ready:
            node = host.device_nodes[0] if job.num_cores else host.host_node
            testing.finish(database, testing.claim(database, job.id, node_id=node))
            count += 1


def test_only_transitions_of_the_table_can_be_asked_for() -> None:
    # On a database without tables a legal one gets as far as its UPDATE; an illegal one does not even reach that.
    accepted = set()
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        for source, name, target in itertools.product(JobState, NAMES, JobState):
            with contextlib.suppress(AssertionError):
                for move, what in ((transitions.move, 1), (transitions.move_all, [1, 2])):
                    with pytest.raises(sa.exc.OperationalError, match="no such table"):
                        move(connection, what, name, source=source, target=target, reason="", at=0.0)
                    accepted.add((move, source, name, target))
    engine.dispose()
    both = transitions.move, transitions.move_all
    assert accepted == {(move, *step) for move in both for step in TRANSITIONS}


def test_several_jobs_are_moved_together_or_not_at_all(each_database: Database) -> None:
    ids = job_ids(each_database, testing.add_submission(each_database))
    with each_database.write() as connection:
        jobs.cancel(connection, ids["run 8 cores"])
    before = states(each_database)
    with (
        pytest.raises(StaleTransition, match=f"j{ids['run 8 cores']} is no longer waiting"),
        each_database.write() as connection,
    ):
        transitions.move_all(
            connection,
            list(ids.values()),
            "block",
            source=JobState.WAITING,
            target=JobState.BLOCKED,
            reason="",
            at=now(connection),
        )
    assert states(each_database) == before


def test_a_sweep_ends_with_one_attempt_per_job_and_an_event_per_change(each_database: Database) -> None:
    host = testing.add_host(each_database)
    testing.add_submission(each_database)
    assert run_all(each_database, host) == 6
    assert set(states(each_database).values()) == {"succeeded"}
    with each_database.read() as connection:
        walked = connection.execute(
            sa.select(events.c.job_id, events.c.transition).order_by(events.c.job_id, events.c.id)
        ).all()
        for job_id in {row.job_id for row in walked}:
            names = [row.transition for row in walked if row.job_id == job_id]
            assert names == ["submit", "admit", "enqueue", "claim", "succeed"]
        for table in (core_leases, host_leases):
            assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0


def test_the_same_work_again_is_cached_and_runs_nothing(each_database: Database) -> None:
    host = testing.add_host(each_database)
    testing.add_submission(each_database)
    run_all(each_database, host)
    testing.add_submission(each_database)
    assert run_all(each_database, host) == 0
    assert set(states(each_database).values()) == {"cached"}


def test_live_work_is_shared_between_submissions(each_database: Database) -> None:
    host = testing.add_host(each_database)
    first, second = testing.add_submission(each_database), testing.add_submission(each_database, priority=7)
    testing.admit_all(each_database)
    leader, follower = (job_ids(each_database, one)["resolve"] for one in (first, second))
    with each_database.read() as connection:
        row = connection.execute(sa.select(job_rows).where(job_rows.c.id == follower)).one()
        assert (row.state, row.leader_id) == ("waiting", leader)
        # The leader is as urgent as whoever waits for it.
        assert [(job.id, job.priority) for job in candidates.ready(connection, limit=9)] == [(leader, 7)]
    assert run_all(each_database, host) == 6
    assert set(states(each_database).values()) == {"cached"}


def test_the_urgency_of_a_follower_carries_its_leader_past_those_that_came_before(each_database: Database) -> None:
    testing.add_host(each_database)
    for number in range(3):
        testing.add_submission(each_database, testing.small_plan(tag=f"before {number}"))
    first = testing.add_submission(each_database)
    testing.admit_all(each_database)
    testing.add_submission(each_database, priority=7)
    testing.admit_all(each_database)
    leader = job_ids(each_database, first)["resolve"]
    with each_database.read() as connection:
        assert [job.id for job in candidates.ready(connection, limit=1, of_device=False)][:1] == [leader]


def test_a_message_that_comes_twice_or_late_changes_nothing(each_database: Database) -> None:
    host = testing.add_host(each_database)
    ids = job_ids(each_database, testing.add_submission(each_database))
    testing.admit_all(each_database)
    claimed = testing.claim(each_database, ids["resolve"], node_id=host.host_node)
    for attempt in (claimed.attempt, claimed.attempt - 1, claimed.attempt + 1):
        with pytest.raises(StaleTransition), each_database.write() as connection:
            attempts.claim(connection, ids["resolve"], attempt, node_id=host.host_node, lease_s=60)
    testing.finish(each_database, claimed)
    with pytest.raises(StaleTransition), each_database.write() as connection:
        attempts.heartbeat(connection, claimed.job_id, claimed.attempt, lease_s=60)
    with pytest.raises(StaleTransition):
        testing.finish(each_database, claimed)


def test_a_lost_attempt_is_fenced_off_and_its_cores_drain_until_its_host_confirms(each_database: Database) -> None:
    host = testing.add_host(each_database)
    ids = job_ids(each_database, testing.add_submission(each_database))
    for label in ("resolve", "export", "compile 14 cores"):
        testing.admit_all(each_database)
        testing.finish(each_database, testing.claim(each_database, ids[label], node_id=host.host_node))
    testing.admit_all(each_database)
    lost = testing.claim(each_database, ids["run 14 cores"], node_id=host.device_nodes[0], lease_s=-1)
    with each_database.write() as connection:
        assert reaping.expired(connection, far_s=600.0) == [(lost.job_id, lost.attempt)]
        state = reaping.lose(connection, lost.job_id, lost.attempt, reason="silent", term=None)
        assert state is JobState.READY
    with each_database.read() as connection:
        assert leases.draining(connection, host_id=host.host_id) == [(lost.job_id, lost.attempt)]
    for late in (
        lambda c: attempts.heartbeat(c, lost.job_id, lost.attempt, lease_s=60),
        lambda c: attempts.interrupt(c, lost.job_id, lost.attempt, reason=""),
        lambda c: attempts.cancel_attempt(c, lost.job_id, lost.attempt, usage=Usage()),
        lambda c: attempts.fail(
            c, lost.job_id, lost.attempt, failure_class=FailureClass.BUG, message="", usage=Usage()
        ),
        lambda c: attempts.succeed(
            c, lost.job_id, lost.attempt, artifact=testing.artifact("late"), figures={}, usage=Usage()
        ),
    ):
        with pytest.raises(StaleTransition), each_database.write() as connection:
            late(connection)
    with pytest.raises(NoCapacity):
        testing.claim(each_database, ids["run 14 cores"], node_id=host.device_nodes[0])
    with each_database.write() as connection:
        attempts.give_back(connection, lost.job_id, lost.attempt + 1, reason="no cores")
        attempts.confirm_gone(connection, host_id=host.host_id, job_id=lost.job_id, attempt=lost.attempt)
    again = testing.claim(each_database, ids["run 14 cores"], node_id=host.device_nodes[0])
    assert (len(again.grants[0].cores), again.attempt) == (14, lost.attempt + 2)


def test_a_job_that_is_lost_too_often_fails_and_blocks_what_needs_it(each_database: Database) -> None:
    host = testing.add_host(each_database)
    ids = job_ids(each_database, testing.add_submission(each_database))
    testing.admit_all(each_database)
    limit = failures.POLICIES[FailureClass.WORKER_LOST].retries
    found = []
    for _ in range(limit + 1):
        lost = testing.claim(each_database, ids["resolve"], node_id=host.host_node)
        with each_database.write() as connection:
            found.append(reaping.lose(connection, lost.job_id, lost.attempt, reason="silent", term=None))
    assert found == [JobState.READY] * limit + [JobState.FAILED]
    others = {state for label, state in states(each_database).items() if label != "resolve"}
    assert others == {"blocked"}


@pytest.mark.parametrize("failure_class", list(FailureClass))
def test_the_class_of_a_failure_decides_about_retry_and_memory(
    each_database: Database, failure_class: FailureClass
) -> None:
    host = testing.add_host(each_database)
    ids = job_ids(each_database, testing.add_submission(each_database))
    other = job_ids(each_database, testing.add_submission(each_database))
    testing.admit_all(each_database)
    claimed = testing.claim(each_database, ids["resolve"], node_id=host.host_node)
    with each_database.write() as connection:
        state = attempts.fail(
            connection,
            claimed.job_id,
            claimed.attempt,
            failure_class=failure_class,
            message="why",
            usage=Usage(exit_code=1),
        )
    retried = failures.POLICIES[failure_class].retries > 0
    assert state is (JobState.READY if retried else JobState.FAILED)
    with each_database.read() as connection:
        not_before = connection.scalar(sa.select(job_rows.c.not_before).where(job_rows.c.id == claimed.job_id))
        assert (not_before > now(connection) - 60) is retried
        follower = connection.scalar(sa.select(job_rows.c.state).where(job_rows.c.id == other["resolve"]))
        remembered = connection.scalar(sa.select(sa.func.count()).select_from(actions))
    deterministic = failures.POLICIES[failure_class].deterministic
    assert follower == ("failed" if deterministic else "waiting")
    assert remembered == int(deterministic)


def test_a_remembered_failure_fails_the_next_at_once_and_a_retry_forgets_it(each_database: Database) -> None:
    host = testing.add_host(each_database)
    ids = job_ids(each_database, testing.add_submission(each_database))
    testing.admit_all(each_database)
    claimed = testing.claim(each_database, ids["resolve"], node_id=host.host_node)
    with each_database.write() as connection:
        attempts.fail(
            connection,
            claimed.job_id,
            claimed.attempt,
            failure_class=FailureClass.UNSUPPORTED,
            message="why",
            usage=Usage(),
        )
    second = job_ids(each_database, testing.add_submission(each_database))
    testing.admit_all(each_database)
    assert states(each_database)["resolve"] == "failed"
    with each_database.write() as connection:
        jobs.retry(connection, second["run 8 cores"])
    assert states(each_database) == dict.fromkeys(states(each_database), "waiting")
    assert run_all(each_database, host) == 6


def test_a_retry_leaves_blocked_what_another_input_still_fails(each_database: Database) -> None:
    testing.add_host(each_database)
    ids = job_ids(each_database, testing.add_submission(each_database, testing.small_plan(cores=(8,))))
    with each_database.write() as connection:
        jobs.cancel(connection, ids["export"])
        jobs.cancel(connection, ids["resolve"])
        jobs.retry(connection, ids["resolve"])
    assert states(each_database) == {
        "resolve": "waiting",
        "export": "cancelled",
        "compile 8 cores": "blocked",
        "run 8 cores": "blocked",
    }


def test_what_has_ended_cannot_be_cancelled_and_what_is_done_cannot_be_retried(each_database: Database) -> None:
    host = testing.add_host(each_database)
    ids = job_ids(each_database, testing.add_submission(each_database))
    run_all(each_database, host)
    with each_database.write() as connection:
        for function in (jobs.cancel, jobs.retry):
            with pytest.raises(Refused, match="succeeded"):
                function(connection, ids["resolve"])
            with pytest.raises(NotFound, match="j999"):
                function(connection, 999)
        with pytest.raises(NotFound, match="s999"):
            jobs.cancel_submission(connection, 999)


def test_a_token_submits_once(each_database: Database) -> None:
    found = set()
    for _ in range(2):
        with each_database.write() as connection:
            found.add(jobs.submit(connection, testing.small_plan(), name="n", owner="o", request={}, token="t"))
    assert len(found) == 1


def test_a_scheduler_of_an_old_term_writes_nothing(each_database: Database) -> None:
    host = testing.add_host(each_database)
    ids = job_ids(each_database, testing.add_submission(each_database))
    with each_database.write() as connection:
        old = leadership.acquire(connection, holder="a", lease_s=-1)
        new = leadership.acquire(connection, holder="b", lease_s=60)
        assert (old, new) == (1, 2)
        assert leadership.acquire(connection, holder="c", lease_s=60) is None
        assert not leadership.renew(connection, holder="a", term=1, lease_s=60)
    testing.admit_all(each_database)
    for write in (
        lambda c: admission.admit(c, ids["export"], action_key="k", parts={}, term=old),
        lambda c: admission.enqueue(c, ids["resolve"], node_id=host.host_node, queue="q", reason="", term=old),
        lambda c: reaping.lose(c, ids["resolve"], 0, reason="", term=old),
        lambda c: outbox.resend_stale(c, older_than_s=0, term=old),
    ):
        with pytest.raises(StaleTransition, match="Term 1 is over"), each_database.write() as connection:
            write(connection)
    with each_database.write() as connection:
        admission.enqueue(connection, ids["resolve"], node_id=host.host_node, queue="q", reason="", term=new)


def test_a_message_is_left_with_its_transition_and_sent_again_while_nobody_claims(each_database: Database) -> None:
    host = testing.add_host(each_database)
    ids = job_ids(each_database, testing.add_submission(each_database))
    testing.admit_all(each_database)

    def enqueue(connection: sa.Connection, times: int) -> None:
        for _ in range(times):
            admission.enqueue(
                connection, ids["resolve"], node_id=host.host_node, queue=host.host_queue, reason="", term=None
            )

    with pytest.raises(StaleTransition), each_database.write() as connection:  # rolls back both together
        enqueue(connection, 2)
    with each_database.write() as connection:
        assert outbox.take_outbox(connection, limit=9) == []
        enqueue(connection, 1)
    with each_database.write() as connection:
        sent = outbox.take_outbox(connection, limit=9)
        assert [(m.queue, m.job_id, m.attempt) for m in sent] == [(host.host_queue, ids["resolve"], 1)]
        assert outbox.resend_stale(connection, older_than_s=-1, term=None) == 0  # still in the outbox
        outbox.delete_outbox(connection, [message.id for message in sent], term=None)
        assert outbox.resend_stale(connection, older_than_s=60, term=None) == 0
        assert outbox.resend_stale(connection, older_than_s=-1, term=None) == 1
    with each_database.write() as connection:
        attempts.claim(connection, ids["resolve"], 1, node_id=host.host_node, lease_s=60)
        assert outbox.resend_stale(connection, older_than_s=-1, term=None) == 0


def test_an_interrupted_attempt_that_a_user_cancelled_is_cancelled(each_database: Database) -> None:
    host = testing.add_host(each_database)
    ids = job_ids(each_database, testing.add_submission(each_database))
    testing.admit_all(each_database)
    claimed = testing.claim(each_database, ids["resolve"], node_id=host.host_node)
    with each_database.write() as connection:
        assert jobs.cancel(connection, ids["resolve"]) is JobState.RUNNING
    with each_database.write() as connection:
        state = attempts.interrupt(connection, claimed.job_id, claimed.attempt, reason="shutting down")
    assert state is JobState.CANCELLED
    assert set(states(each_database).values()) == {"cancelled", "blocked"}


def test_an_interrupted_attempt_counts_against_nobody(each_database: Database) -> None:
    host = testing.add_host(each_database)
    ids = job_ids(each_database, testing.add_submission(each_database))
    testing.admit_all(each_database)
    claimed = testing.claim(each_database, ids["resolve"], node_id=host.host_node)
    with each_database.write() as connection:
        attempts.interrupt(connection, claimed.job_id, claimed.attempt, reason="shutting down")
    with each_database.read() as connection:
        row = connection.execute(sa.select(job_rows).where(job_rows.c.id == claimed.job_id)).one()
        assert (row.state, row.failures, row.attempt) == ("ready", 0, 1)
        assert connection.scalar(sa.select(attempt_rows.c.state)) == "interrupted"
    assert run_all(each_database, host) == 6
