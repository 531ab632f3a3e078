"""An input that is damaged is made again, for whoever needs it, and a bounded number of times."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.lifecycle import jobs, rebuilding
from farm.models import jobs as job_rows
from farm.records import Claim, Usage
from farm.states import JobState
from farm.views import queries, sweeps
from tests.proof import invariants


def submit(database: Database, *, cores: tuple[int, ...] = (8,)) -> dict[str, int]:
    """Ids of the small plan's jobs by label."""
    number = testing.add_submission(database, testing.small_plan(cores=cores))
    with database.read() as connection:
        rows = connection.execute(sa.select(job_rows.c.label, job_rows.c.id).where(job_rows.c.submission_id == number))
        return {row.label: row.id for row in rows}


def row(database: Database, job_id: int) -> Any:
    with database.read() as connection:
        return connection.execute(sa.select(job_rows).where(job_rows.c.id == job_id)).one()


def claim(database: Database, host: testing.FakeHost, job_id: int) -> Claim:
    testing.admit_all(database)
    node_id = host.device_nodes[0] if row(database, job_id).num_cores else host.host_node
    return testing.claim(database, job_id, node_id=node_id)


def find_damaged(database: Database, claimed: Claim, name: str) -> JobState:
    """An attempt says that one of its inputs is damaged."""
    with database.write() as connection:
        named = {"digest": claimed.inputs[name], "message": f"{name} is damaged", "usage": Usage(exit_code=1)}
        return rebuilding.rebuild_input(connection, claimed.job_id, claimed.attempt, **named)


def ready(database: Database) -> dict[int, str]:
    """Label by id of what may be placed."""
    testing.admit_all(database)
    with database.read() as connection:
        query = sa.select(job_rows.c.id, job_rows.c.label).where(job_rows.c.state == "ready").order_by(job_rows.c.id)
        return {found.id: found.label for found in connection.execute(query)}


def run_all(database: Database, host: testing.FakeHost) -> list[str]:
    ran = []
    while found := ready(database):
        for job_id, label in found.items():
            testing.finish(database, claim(database, host, job_id))
            ran.append(label)
    return ran


def test_a_damaged_input_is_made_again_and_its_reader_goes_on(each_database: Database) -> None:
    host = testing.add_host(each_database)
    ids = submit(each_database)
    for label in ("resolve", "export"):
        testing.finish(each_database, claim(each_database, host, ids[label]))
    claimed = claim(each_database, host, ids["compile 8 cores"])
    assert find_damaged(each_database, claimed, "onnx") is JobState.WAITING
    invariants.check(each_database)
    assert row(each_database, ids["export"]).state == "succeeded"  # what has ended does not change
    assert run_all(each_database, host) == ["export", "compile 8 cores", "run 8 cores"]
    invariants.check(each_database)
    with each_database.read() as connection:
        (point,) = sweeps.point_list(connection, row(each_database, ids["export"]).submission_id)
        stages = [outcome.job.stage for outcome in point.outcomes]
        found = queries.submission(connection, row(each_database, ids["export"]).submission_id)
    assert sorted(stages) == ["compile", "export", "export", "resolve", "run"]
    assert found.state == "succeeded"


def test_readers_of_one_damaged_artifact_share_what_makes_it_again(each_database: Database) -> None:
    host = testing.add_host(each_database)
    first, second = submit(each_database, cores=(3, 8)), submit(each_database, cores=(14,))
    for label in ("resolve", "export"):
        testing.finish(each_database, claim(each_database, host, first[label]))
    testing.admit_all(each_database)
    readers = [claim(each_database, host, first[f"compile {number} cores"]) for number in (3, 8)]
    for claimed in readers:
        assert find_damaged(each_database, claimed, "onnx") is JobState.WAITING
    claimed = claim(each_database, host, second["compile 14 cores"])
    assert find_damaged(each_database, claimed, "onnx") is JobState.WAITING  # the other submission's
    invariants.check(each_database)
    again = ready(each_database)
    assert list(again.values()) == ["export"]
    assert sorted(run_all(each_database, host)) == [
        "compile 14 cores",
        "compile 3 cores",
        "compile 8 cores",
        "export",
        "run 14 cores",
        "run 3 cores",
        "run 8 cores",
    ]
    invariants.check(each_database)


def test_damage_is_followed_upwards(each_database: Database) -> None:
    host = testing.add_host(each_database)
    ids = submit(each_database)
    for label in ("resolve", "export"):
        testing.finish(each_database, claim(each_database, host, ids[label]))
    find_damaged(each_database, claim(each_database, host, ids["compile 8 cores"]), "onnx")
    (again,) = ready(each_database)
    assert find_damaged(each_database, claim(each_database, host, again), "snapshot") is JobState.WAITING
    assert run_all(each_database, host) == ["resolve", "export", "compile 8 cores", "run 8 cores"]
    invariants.check(each_database)


def test_an_input_that_is_damaged_again_and_again_ends_as_a_failure(each_database: Database) -> None:
    host = testing.add_host(each_database)
    ids = submit(each_database)
    testing.finish(each_database, claim(each_database, host, ids["resolve"]))
    states = []
    while JobState.FAILED not in states:
        states.append(find_damaged(each_database, claim(each_database, host, ids["export"]), "snapshot"))
        invariants.check(each_database)
        for job_id, label in ready(each_database).items():
            if label == "resolve":
                testing.finish(each_database, claim(each_database, host, job_id))
    assert states == [JobState.WAITING] * 3 + [JobState.FAILED]
    assert row(each_database, ids["export"]).failure_class == "infrastructure"


def test_who_reads_for_others_only_leaves_it_to_them(each_database: Database) -> None:
    host = testing.add_host(each_database)
    first, second = submit(each_database), submit(each_database)
    testing.finish(each_database, claim(each_database, host, first["resolve"]))
    claimed = claim(each_database, host, first["export"])
    testing.admit_all(each_database)
    with each_database.write() as connection:
        jobs.cancel(connection, first["export"])
    assert find_damaged(each_database, claimed, "snapshot") is JobState.CANCELLED
    invariants.check(each_database)
    assert find_damaged(each_database, claim(each_database, host, second["export"]), "snapshot") is JobState.WAITING
    assert run_all(each_database, host) == ["resolve", "export", "compile 8 cores", "run 8 cores"]
    invariants.check(each_database)


def test_a_retry_takes_along_what_failed_to_make_the_input_again(each_database: Database) -> None:
    host = testing.add_host(each_database)
    ids = submit(each_database)
    testing.finish(each_database, claim(each_database, host, ids["resolve"]))
    find_damaged(each_database, claim(each_database, host, ids["export"]), "snapshot")
    (again,) = ready(each_database)
    with each_database.write() as connection:
        jobs.cancel(connection, again)
    assert row(each_database, ids["export"]).state == "blocked"
    with each_database.write() as connection:
        jobs.retry(connection, ids["export"])
    assert run_all(each_database, host) == ["resolve", "export", "compile 8 cores", "run 8 cores"]
    invariants.check(each_database)
