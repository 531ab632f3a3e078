"""Work that several jobs want is done once, for as long as somebody wants it, and as urgently as whoever does."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.errors import Refused
from farm.lifecycle import admission, attempts, jobs, reaping
from farm.models import actions, events
from farm.models import attempts as attempt_rows
from farm.models import jobs as job_rows
from farm.records import Claim, Usage
from farm.states import JobState
from farm.views import queries, sweeps
from qeff_engine.errors import FailureClass
from tests.proof import invariants

LABELS = ("resolve", "export", "compile 8 cores", "run 8 cores")


def submit(database: Database, **how: Any) -> dict[str, int]:
    """Submit the small plan for one number of cores; ids by label, and the submission's by ``"submission"``."""
    number = testing.add_submission(database, testing.small_plan(cores=(8,)), **how)
    testing.admit_all(database)
    with database.read() as connection:
        rows = connection.execute(sa.select(job_rows.c.label, job_rows.c.id).where(job_rows.c.submission_id == number))
        return {"submission": number, **{row.label: row.id for row in rows}}


def enqueue(database: Database, job_id: int, *, node_id: int) -> None:
    with database.write() as connection:
        admission.enqueue(connection, job_id, node_id=node_id, queue="q", reason="test", term=None)


def admit_beside_others(database: Database) -> None:
    """Admit what may be, as a scheduler does while others do."""
    with database.read() as connection:
        found = [
            (job.id, f"{job.stage}:{job.fields}:{sorted(job.inputs.items())}", {})
            for job in admission.admissible(connection, limit=1000)
        ]
    with database.write() as connection:
        admission.admit_all(connection, found, term=None)


def row(database: Database, job_id: int) -> Any:
    with database.read() as connection:
        return connection.execute(sa.select(job_rows).where(job_rows.c.id == job_id)).one()


def seen(database: Database, ids: dict[str, int]) -> dict[str, str]:
    """State by label, as people see it."""
    with database.read() as connection:
        return {label: str(queries.job(connection, ids[label]).state) for label in LABELS}


def cancel(database: Database, job_id: int) -> JobState:
    with database.write() as connection:
        return jobs.cancel(connection, job_id)


def fail(database: Database, claimed: Claim, failure_class: FailureClass) -> JobState:
    with database.write() as connection:
        return attempts.fail(
            connection,
            claimed.job_id,
            claimed.attempt,
            failure_class=failure_class,
            message="why",
            usage=Usage(exit_code=1),
        )


@pytest.mark.parametrize(
    ("stage", "how"), [("ready", "first"), ("queued", "first"), ("running", "first"), ("running", "submission")]
)
def test_cancelled_work_that_others_wait_for_goes_on_for_them(each_database: Database, stage: str, how: str) -> None:
    host = testing.add_host(each_database)
    first, second = submit(each_database, owner="ada"), submit(each_database, owner="bob")
    leader, follower = first["resolve"], second["resolve"]
    claimed = None
    if stage == "running":
        claimed = testing.claim(each_database, leader, node_id=host.host_node)
    elif stage == "queued":
        enqueue(each_database, leader, node_id=host.host_node)
    if how == "submission":
        with each_database.write() as connection:
            assert jobs.cancel_submission(connection, first["submission"])["stopping"] == 0
    else:
        assert cancel(each_database, leader) is JobState.CANCELLED
        assert seen(each_database, first) == {"resolve": "cancelled", **dict.fromkeys(LABELS[1:], "blocked")}
    assert row(each_database, leader).state == stage
    with each_database.read() as connection:
        ended = queries.submission(connection, first["submission"])
        assert ended.finished_at is not None
        assert queries.running(connection, first["submission"]) == []
    invariants.check(each_database)
    if stage == "ready":
        enqueue(each_database, leader, node_id=host.host_node)
    claimed = claimed or testing.claim_queued(each_database, leader, node_id=host.host_node)
    with each_database.write() as connection:
        assert not attempts.heartbeat(connection, leader, claimed.attempt, lease_s=60)  # nobody asks it to stop
    testing.finish(each_database, claimed)
    assert (row(each_database, leader).state, row(each_database, leader).artifact) == ("cancelled", None)
    assert (row(each_database, follower).state, row(each_database, follower).done_by) == ("cached", leader)
    assert row(each_database, second["export"]).remaining == 0
    with each_database.read() as connection:
        (outcome,) = sweeps.outcomes(connection, [follower], submission_id=second["submission"])
        assert outcome.figures == {"x": 1}
        assert queries.submission(connection, first["submission"]).finished_at == ended.finished_at
    invariants.check(each_database)


def test_work_stops_when_the_last_who_wants_it_cancels_too(each_database: Database) -> None:
    host = testing.add_host(each_database)
    first, second, third = (submit(each_database) for _ in range(3))
    claimed = testing.claim(each_database, first["resolve"], node_id=host.host_node)
    cancel(each_database, first["resolve"])
    cancel(each_database, second["resolve"])
    assert not row(each_database, first["resolve"]).cancel_requested
    cancel(each_database, third["resolve"])
    assert row(each_database, first["resolve"]).cancel_requested
    with pytest.raises(Refused, match="cancelled already"):
        cancel(each_database, first["resolve"])
    with pytest.raises(Refused, match="just being stopped"), each_database.write() as connection:
        jobs.retry(connection, first["resolve"])
    with each_database.write() as connection:
        attempts.cancel_attempt(connection, claimed.job_id, claimed.attempt, usage=Usage())
    assert row(each_database, first["resolve"]).state == "cancelled"
    invariants.check(each_database)


@pytest.mark.parametrize("stage", ["ready", "queued"])
def test_what_nobody_runs_yet_ends_at_once_with_the_last_who_wants_it(each_database: Database, stage: str) -> None:
    host = testing.add_host(each_database)
    first, second = submit(each_database), submit(each_database)
    if stage == "queued":
        enqueue(each_database, first["resolve"], node_id=host.host_node)
    cancel(each_database, first["resolve"])
    assert row(each_database, first["resolve"]).state == stage
    with each_database.write() as connection:
        jobs.cancel_submission(connection, second["submission"])
    assert row(each_database, first["resolve"]).state == "cancelled"
    invariants.check(each_database)
    third = submit(each_database)
    assert row(each_database, third["resolve"]).state == "ready"  # the key is free


def test_a_submission_with_the_same_work_twice_cancels_both(each_database: Database) -> None:
    testing.add_host(each_database)
    ids = submit(each_database)
    twin = testing.add_submission(each_database, testing.small_plan(cores=(8,)))
    with each_database.write() as connection:  # the second of a submission with two names for one model
        connection.execute(
            sa.update(job_rows).where(job_rows.c.submission_id == twin).values(submission_id=ids["submission"])
        )
    testing.admit_all(each_database)
    with each_database.write() as connection:
        counts = jobs.cancel_submission(connection, ids["submission"])
    assert counts == {"cancelled": 8, "stopping": 0, "ended": 0}
    with each_database.read() as connection:
        assert set(connection.scalars(sa.select(job_rows.c.state))) == {"cancelled"}
    invariants.check(each_database)


def test_a_cancelled_leader_that_its_user_wants_again_is_the_submissions_own_again(each_database: Database) -> None:
    host = testing.add_host(each_database)
    first, second = submit(each_database, priority=3), submit(each_database, priority=1)
    claimed = testing.claim(each_database, first["resolve"], node_id=host.host_node)
    cancel(each_database, first["resolve"])
    assert row(each_database, first["resolve"]).priority == 1  # that of the one who still waits
    with each_database.write() as connection:
        jobs.retry(connection, first["run 8 cores"])  # by way of what is blocked behind it
    assert row(each_database, first["resolve"]).priority == 3
    assert seen(each_database, first) == {"resolve": "running", **dict.fromkeys(LABELS[1:], "waiting")}
    invariants.check(each_database)
    testing.finish(each_database, claimed)
    assert [row(each_database, ids["resolve"]).state for ids in (first, second)] == ["succeeded", "cached"]
    invariants.check(each_database)


def test_a_cancelled_follower_that_is_wanted_again_follows_again(each_database: Database) -> None:
    host = testing.add_host(each_database)
    first, second, third = (submit(each_database) for _ in range(3))
    testing.claim(each_database, first["resolve"], node_id=host.host_node)
    cancel(each_database, first["resolve"])
    cancel(each_database, second["resolve"])
    with each_database.write() as connection:
        jobs.retry(connection, second["resolve"])
    testing.admit_all(each_database)
    assert [row(each_database, ids["resolve"]).leader_id for ids in (second, third)] == [first["resolve"]] * 2
    invariants.check(each_database)


def test_a_cancelled_leader_that_succeeded_for_others_is_a_hit_when_it_is_wanted_again(each_database: Database) -> None:
    host = testing.add_host(each_database)
    first, second = submit(each_database), submit(each_database)
    claimed = testing.claim(each_database, first["resolve"], node_id=host.host_node)
    cancel(each_database, first["resolve"])
    testing.finish(each_database, claimed)
    with each_database.write() as connection:
        jobs.retry(connection, first["resolve"])
    testing.admit_all(each_database)
    assert (row(each_database, first["resolve"]).state, row(each_database, second["resolve"]).state) == (
        "cached",
        "cached",
    )
    invariants.check(each_database)


def test_a_cancelled_leader_that_succeeded_for_others_can_succeed_again(each_database: Database) -> None:
    host = testing.add_host(each_database)
    first, second = submit(each_database), submit(each_database)
    claimed = testing.claim(each_database, first["resolve"], node_id=host.host_node)
    cancel(each_database, first["resolve"])
    testing.finish(each_database, claimed, digest="old")
    with each_database.write() as connection:
        jobs.retry(connection, first["resolve"], skip_cache=True)
    testing.admit_all(each_database)
    testing.finish(each_database, testing.claim(each_database, first["resolve"], node_id=host.host_node), digest="new")
    assert (row(each_database, first["resolve"]).artifact, row(each_database, second["resolve"]).artifact) == (
        "new",
        "old",
    )
    with each_database.read() as connection:
        states = connection.execute(
            sa.select(attempt_rows.c.state, attempt_rows.c.replaced_at.is_(None)).order_by(attempt_rows.c.number)
        ).all()
    assert [tuple(one) for one in states] == [("succeeded", False), ("succeeded", True)]
    invariants.check(each_database)


@pytest.mark.parametrize(
    ("failure_class", "follower_state"), [(FailureClass.UNSUPPORTED, "failed"), (FailureClass.BUG, "waiting")]
)
def test_a_cancelled_leader_that_fails_does_to_its_followers_what_any_does(
    each_database: Database, failure_class: FailureClass, follower_state: str
) -> None:
    host = testing.add_host(each_database)
    first, second = submit(each_database), submit(each_database)
    claimed = testing.claim(each_database, first["resolve"], node_id=host.host_node)
    cancel(each_database, first["resolve"])
    assert fail(each_database, claimed, failure_class) is JobState.CANCELLED
    leader, follower = row(each_database, first["resolve"]), row(each_database, second["resolve"])
    assert (leader.state, leader.failure_class) == ("cancelled", None)
    assert (follower.state, follower.leader_id) == (follower_state, None)
    assert (follower.failure_advice is not None) == (follower_state == "failed")
    invariants.check(each_database)


def test_a_cancelled_leader_is_tried_again_for_its_followers_until_it_was_lost_too_often(
    each_database: Database,
) -> None:
    host = testing.add_host(each_database)
    first, second = submit(each_database), submit(each_database)
    states = []
    for number in range(4):
        claimed = testing.claim(each_database, first["resolve"], node_id=host.host_node)
        if number == 0:
            cancel(each_database, first["resolve"])
        with each_database.write() as connection:
            states.append(reaping.lose(connection, claimed.job_id, claimed.attempt, reason="silent", term=None))
        assert seen(each_database, first)["resolve"] == "cancelled"
        invariants.check(each_database)
    assert states == [JobState.READY] * 3 + [JobState.CANCELLED]
    testing.admit_all(each_database)
    assert row(each_database, second["resolve"]).state == "ready"


def test_a_leader_is_as_urgent_as_whoever_waits_for_it_and_only_while_they_do(each_database: Database) -> None:
    testing.add_host(each_database)
    first = submit(each_database, priority=1, kind="sweep")
    second = submit(each_database, priority=0, kind="interactive")
    third = submit(each_database, priority=5, kind="nightly")

    def urgency() -> tuple[int, str]:
        leader = row(each_database, first["resolve"])
        return leader.priority, leader.kind

    assert urgency() == (5, "interactive")
    cancel(each_database, third["resolve"])
    assert urgency() == (1, "interactive")
    cancel(each_database, first["resolve"])
    assert urgency() == (0, "interactive")
    with each_database.write() as connection:
        jobs.retry(connection, first["resolve"])
    assert urgency() == (1, "interactive")
    cancel(each_database, second["resolve"])
    assert urgency() == (1, "sweep")


def test_the_same_work_of_many_owners_is_done_once_and_each_of_their_children_goes_on(each_database: Database) -> None:
    host = testing.add_host(each_database)
    number = 6
    found: list[dict[str, int]] = []
    barrier = threading.Barrier(number)

    def work(owner: int) -> int:
        barrier.wait()
        submission_id = testing.add_submission(each_database, testing.small_plan(cores=(8,)), owner=f"owner {owner}")
        admit_beside_others(each_database)
        return submission_id

    with concurrent.futures.ThreadPoolExecutor(number) as pool:
        submitted = list(pool.map(work, range(number)))
    for submission_id in submitted:
        with each_database.read() as connection:
            found.append({job.label: job.id for job in queries.job_list(connection, submission_id=submission_id)})
    for label in LABELS:
        live = [ids[label] for ids in found if row(each_database, ids[label]).state == "ready"]
        assert len(live) == 1, label
        node_id = host.device_nodes[0] if label.startswith("run") else host.host_node
        testing.finish(each_database, testing.claim(each_database, live[0], node_id=node_id))
        invariants.check(each_database)
        testing.admit_all(each_database)
    with each_database.read() as connection:
        states = list(connection.scalars(sa.select(job_rows.c.state)))
        assert connection.scalar(sa.select(sa.func.count()).select_from(attempt_rows)) == len(LABELS)
        assert connection.scalar(sa.select(sa.func.count()).select_from(actions)) == len(LABELS)
        assert connection.scalar(sa.select(sa.func.count()).where(events.c.transition == "hit")) == len(LABELS) * 5
    assert sorted(states) == ["cached"] * len(LABELS) * 5 + ["succeeded"] * len(LABELS)


def test_who_cancels_and_who_follows_at_the_same_moment_agree(each_database: Database) -> None:
    """Whichever comes first: the work goes on for the follower, or the follower does it itself."""
    host = testing.add_host(each_database)
    for number in range(6):
        plan = testing.small_plan(cores=(8,), tag=f"model {number}")
        plan = dataclasses.replace(plan, jobs=plan.jobs[:1], points=())
        testing.add_submission(each_database, plan)
        (leader,) = testing.admit_all(each_database)
        claimed = testing.claim(each_database, leader, node_id=host.host_node)
        testing.add_submission(each_database, plan)
        barrier = threading.Barrier(2)

        def stop(leader: int = leader, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            cancel(each_database, leader)

        def follow(barrier: threading.Barrier = barrier) -> list[int]:
            barrier.wait()
            return testing.admit_all(each_database)

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            stopped, followed = pool.submit(stop), pool.submit(follow)
            stopped.result()
            (follower,) = followed.result()
        invariants.check(each_database)
        if row(each_database, leader).cancel_requested:
            with each_database.write() as connection:
                attempts.cancel_attempt(connection, leader, claimed.attempt, usage=Usage())
            testing.admit_all(each_database)
            assert row(each_database, follower).state == "ready"
            cancel(each_database, follower)
        else:
            testing.finish(each_database, claimed)
            assert row(each_database, follower).state == "cached"
        invariants.check(each_database)


def test_processes_that_admit_and_cancel_the_same_work_leave_one_who_does_it(each_database: Database) -> None:
    testing.add_host(each_database)
    plan = testing.small_plan(cores=(8,))
    plan = dataclasses.replace(plan, jobs=plan.jobs[:1], points=())
    for number in range(24):
        testing.add_submission(each_database, plan, owner=f"owner {number}")
    with each_database.read() as connection:
        ids = [job.id for job in admission.admissible(connection, limit=99)]
    url = each_database.engine.url.render_as_string(hide_password=False)
    with contextlib.ExitStack() as stack:
        processes = []
        for first in range(3):
            mine = ids[first::3]
            # Each admits its share, and of what another admits it cancels some while that goes on.
            words = [*mine[:4], *(-other for other in ids[(first + 1) % 3 :: 3][:3]), *mine[4:]]
            command = [sys.executable, "-m", "tests.admitter", url, "the key", *map(str, words)]
            processes.append(stack.enter_context(_process(command)))
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait() for process in processes] == [0, 0, 0]
    invariants.check(each_database)
    with each_database.read() as connection:
        rows = connection.execute(sa.select(job_rows.c.id, job_rows.c.state, job_rows.c.leader_id)).all()
    live = [one.id for one in rows if one.state == "ready"]
    assert len(live) == 1
    assert {one.leader_id for one in rows if one.state == "waiting"} == set(live)


def _process(command: list[str]) -> subprocess.Popen[str]:
    root = Path(__file__).parents[3]
    return subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
