"""What is known of work: when it is believed, when it is replaced, who wants it anew, and why something was done."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database, now
from farm.lifecycle import admission, attempts, jobs, results
from farm.models import actions
from farm.models import jobs as job_rows
from farm.plan import Plan
from farm.records import Usage
from farm.settings import FAILURES_BELIEVED_S
from farm.states import JobState
from farm.views import misses
from qeff_engine import actions as keys
from qeff_engine import spec
from qeff_engine.errors import FailureClass
from tests.proof import invariants

TOOLCHAIN = {"engine": "1", "torch": "2.12.0", "transformers": "5.23.0", "onnx": "1.23.0", "onnxscript": "0.7.2"}


def one_job(*, stage: spec.Stage = spec.Stage.RESOLVE) -> Plan:
    plan = testing.small_plan(cores=(8,))
    job = next(job for job in plan.jobs if job.stage is stage)
    return Plan(jobs=(job.__class__(**{**vars(job), "inputs": {}}),), points=())


def submit(database: Database, plan: Plan | None = None, **how: Any) -> int:
    """Submit one job; its id."""
    submission_id = testing.add_submission(database, plan or one_job(), **how)
    with database.read() as connection:
        query = sa.select(job_rows.c.id).where(job_rows.c.submission_id == submission_id)
        return int(connection.execute(query).scalar_one())


def row(database: Database, job_id: int) -> Any:
    with database.read() as connection:
        return connection.execute(sa.select(job_rows).where(job_rows.c.id == job_id)).one()


def work(database: Database, host: testing.FakeHost, job_id: int, *, digest: str) -> None:
    testing.admit_all(database)
    testing.finish(database, testing.claim(database, job_id, node_id=host.host_node), digest=digest)


def fail(database: Database, host: testing.FakeHost, job_id: int, failure_class: FailureClass) -> None:
    testing.admit_all(database)
    claimed = testing.claim(database, job_id, node_id=host.host_node)
    with database.write() as connection:
        named = {"failure_class": failure_class, "message": "why", "usage": Usage(exit_code=1)}
        attempts.fail(connection, job_id, claimed.attempt, **named)


def believed(database: Database) -> list[str | None]:
    """Artifacts, or classes of failures, of the actions that are believed now."""
    with database.read() as connection:
        at = now(connection)
        found = [results.known(connection, key, at=at) for key in connection.scalars(sa.select(actions.c.action_key))]
    return [one.artifact or one.failure_class for one in found if one is not None]


def test_work_that_is_wanted_anew_is_done_and_replaces_what_was_known(each_database: Database) -> None:
    host = testing.add_host(each_database)
    first = submit(each_database)
    work(each_database, host, first, digest="old")
    second = submit(each_database)
    testing.admit_all(each_database)
    assert (row(each_database, second).state, row(each_database, second).artifact) == ("cached", "old")
    anew = submit(each_database, anew=list(spec.Stage))
    testing.admit_all(each_database)
    assert row(each_database, anew).state == "ready"
    work(each_database, host, anew, digest="new")
    last = submit(each_database)
    testing.admit_all(each_database)
    assert (row(each_database, last).artifact, row(each_database, last).done_by) == ("new", anew)
    assert row(each_database, second).done_by == first  # what it took is what it has
    invariants.check(each_database)


def test_work_that_is_wanted_anew_waits_for_what_may_have_begun_before_and_is_done_after_it(
    each_database: Database,
) -> None:
    host = testing.add_host(each_database)
    first = submit(each_database)
    testing.admit_all(each_database)
    claimed = testing.claim(each_database, first, node_id=host.host_node)
    anew = [submit(each_database, anew=["resolve"]) for _ in range(2)]
    plain = submit(each_database)
    testing.admit_all(each_database)
    assert {row(each_database, one).leader_id for one in (*anew, plain)} == {first}
    assert "may have begun before" in row(each_database, anew[0]).reason
    testing.finish(each_database, claimed, digest="old")
    assert [row(each_database, one).state for one in (*anew, plain)] == ["waiting", "waiting", "cached"]
    testing.admit_all(each_database)
    assert [row(each_database, one).leader_id for one in anew] == [None, anew[0]]  # both were asked before it begins
    invariants.check(each_database)
    testing.finish(each_database, testing.claim(each_database, anew[0], node_id=host.host_node), digest="new")
    assert [row(each_database, one).artifact for one in (*anew, plain)] == ["new", "new", "old"]
    invariants.check(each_database)


def test_who_only_waits_for_a_key_does_not_keep_its_cancelled_holder_alive(each_database: Database) -> None:
    host = testing.add_host(each_database)
    first = submit(each_database)
    testing.admit_all(each_database)
    testing.claim(each_database, first, node_id=host.host_node)
    anew = submit(each_database, anew=["resolve"])
    testing.admit_all(each_database)
    with each_database.write() as connection:
        assert jobs.cancel(connection, first) is JobState.RUNNING
    assert row(each_database, first).cancel_requested
    assert row(each_database, anew).leader_id == first
    invariants.check(each_database)


def test_fresh_runs_measure_anew_and_reuse_all_else(each_database: Database) -> None:
    host = testing.add_host(each_database)
    plan = testing.small_plan(cores=(8,))
    testing.add_submission(each_database, plan)

    def run_all() -> list[str]:
        ran = []
        while testing.admit_all(each_database):
            with each_database.read() as connection:
                ready = connection.execute(
                    sa.select(job_rows.c.id, job_rows.c.stage, job_rows.c.num_cores).where(job_rows.c.state == "ready")
                ).all()
            for job in ready:
                node_id = host.device_nodes[0] if job.num_cores else host.host_node
                testing.finish(each_database, testing.claim(each_database, job.id, node_id=node_id))
                ran.append(job.stage)
        return ran

    assert run_all() == ["resolve", "export", "compile", "run"]
    testing.add_submission(each_database, plan)
    assert run_all() == []
    testing.add_submission(each_database, plan, anew=["run"])
    assert run_all() == ["run"]
    testing.add_submission(each_database, plan, anew=list(spec.Stage))
    assert run_all() == ["resolve", "export", "compile", "run"]
    invariants.check(each_database)


@pytest.mark.parametrize("kind", list(FailureClass))
def test_only_a_failure_that_would_come_again_is_remembered_and_for_a_week(
    each_database: Database, kind: FailureClass
) -> None:
    host = testing.add_host(each_database)
    fail(each_database, host, submit(each_database), kind)
    deterministic = kind in (FailureClass.INVALID_INPUT, FailureClass.UNSUPPORTED, FailureClass.COMPILER_ERROR)
    assert believed(each_database) == ([str(kind)] if deterministic else [])
    if deterministic:
        second = submit(each_database)
        testing.admit_all(each_database)
        assert (row(each_database, second).state, row(each_database, second).failure_line) == ("failed", "why")
        with each_database.write() as connection:
            left_s = connection.scalar(sa.select(actions.c.expires_at)) - now(connection)
            assert 0.99 < left_s / FAILURES_BELIEVED_S <= 1
            connection.execute(sa.update(actions).values(expires_at=now(connection) - 1))
        third = submit(each_database)
        testing.admit_all(each_database)
        assert row(each_database, third).state == "ready"


def test_a_failure_is_believed_for_as_long_as_the_farm_is_set_to(each_database: Database) -> None:
    host = testing.add_host(each_database)
    job_id = submit(each_database)
    testing.admit_all(each_database)
    claimed = testing.claim(each_database, job_id, node_id=host.host_node)
    with each_database.write() as connection:
        how: dict[str, Any] = {"failure_class": FailureClass.UNSUPPORTED, "message": "why", "usage": Usage()}
        attempts.fail(connection, job_id, claimed.attempt, believed_for_s=60.0, **how)
        assert 50 < connection.scalar(sa.select(actions.c.expires_at)) - now(connection) <= 60


def test_a_failure_does_not_replace_a_success_and_a_success_replaces_a_failure(each_database: Database) -> None:
    host = testing.add_host(each_database)
    work(each_database, host, submit(each_database), digest="good")
    fail(each_database, host, submit(each_database, anew=["resolve"]), FailureClass.UNSUPPORTED)
    assert believed(each_database) == ["good"]
    with each_database.write() as connection:
        results.forget_artifact(connection, "good", at=now(connection))
    assert believed(each_database) == []
    fail(each_database, host, submit(each_database), FailureClass.UNSUPPORTED)
    assert believed(each_database) == ["unsupported"]
    work(each_database, host, submit(each_database, anew=["resolve"]), digest="better")
    assert believed(each_database) == ["better"]


def admit_with(database: Database, toolchain: dict[str, str]) -> None:
    """Admit with keys that are made as the scheduler makes them."""
    with database.read() as connection:
        found = [
            (job.id, *keys.action_key(job.stage, fields=job.fields, input_digests=job.inputs, toolchain=toolchain))
            for job in admission.admissible(connection, limit=100)
        ]
    with database.write() as connection:
        admission.admit_all(connection, found, term=None)


def test_another_toolchain_is_other_work_and_the_difference_is_told(each_database: Database) -> None:
    host = testing.add_host(each_database)
    plan = one_job(stage=spec.Stage.EXPORT)
    first = submit(each_database, plan)
    admit_with(each_database, TOOLCHAIN)
    fail(each_database, host, first, FailureClass.UNSUPPORTED)
    second, third = submit(each_database, plan), submit(each_database, plan)
    with each_database.write() as connection:  # the third comes when the host has got a new version
        connection.execute(sa.update(job_rows).where(job_rows.c.id == third).values(remaining=1))
    admit_with(each_database, {**TOOLCHAIN, "sdk_apps": "1.21"})  # an export does not depend on the SDK
    assert row(each_database, second).state == "failed"
    with each_database.write() as connection:
        connection.execute(sa.update(job_rows).where(job_rows.c.id == third).values(remaining=0))
    admit_with(each_database, {**TOOLCHAIN, "torch": "2.13.0"})
    assert row(each_database, third).state == "ready"  # a failure is not believed of another toolchain
    work(each_database, host, third, digest="d" * 64)
    fourth = submit(each_database, plan)
    admit_with(each_database, TOOLCHAIN | {"torch": "2.14.0"})
    with each_database.read() as connection:
        found = misses.explain(connection, fourth)
    assert found is not None
    assert found.nearest == third
    assert [str(one) for one in found.differences] == ["toolchain.torch 2.13.0 -> 2.14.0"]
    assert found.reason == f"The most similar work was j{third}. It differs: toolchain.torch 2.13.0 -> 2.14.0."


def test_why_work_was_done_though_it_had_been_done(each_database: Database) -> None:
    host = testing.add_host(each_database)

    def why(job_id: int) -> str | None:
        with each_database.read() as connection:
            found = misses.explain(connection, job_id)
        return None if found is None else found.reason

    first = submit(each_database)
    assert why(first) is None  # its key is not known yet
    work(each_database, host, first, digest="good")
    assert why(first) == "No resolve had been done before."
    cached = submit(each_database)
    testing.admit_all(each_database)
    assert why(cached) is None
    anew = submit(each_database, anew=["resolve"])
    testing.admit_all(each_database)
    assert why(anew) == "Its user wants it done anew, whatever is known."
    work(each_database, host, anew, digest="good")
    with each_database.write() as connection:
        results.forget_artifact(connection, "good", at=now(connection))
    again = submit(each_database)
    testing.admit_all(each_database)
    assert why(again) == f"The same work was done by j{anew}, but its artifact was damaged or deleted."
