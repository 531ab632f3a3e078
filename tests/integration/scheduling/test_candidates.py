"""Which ready jobs placement looks at, on real databases."""

from __future__ import annotations

import re
from typing import Any

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.lifecycle import attempts
from farm.models import jobs
from farm.plan import Plan, PlannedJob, PlannedPoint
from farm.records import Usage
from farm.scheduling import candidates
from qeff_engine.errors import FailureClass
from qeff_engine.spec import Stage


def compiles(number: int, *, tag: str) -> Plan:
    """Compiles without inputs."""
    planned = tuple(
        PlannedJob(plan_key=f"{tag}{n}", stage=Stage.COMPILE, spec={"tag": tag, "n": n}, label=f"{tag} {n}", inputs={})
        for n in range(number)
    )
    return Plan(jobs=planned, points=tuple(PlannedPoint(axes={}, plan_keys=(job.plan_key,)) for job in planned))


def add_ready(database: Database, number: int, *, tag: str, owner: str = "ada", **columns: Any) -> list[int]:
    """Ids of ready jobs that want a slot, in the order of their ages."""
    testing.add_submission(database, compiles(number, tag=tag), owner=owner)
    ids = testing.admit_all(database)
    if columns:
        with database.write() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.id.in_(ids)).values(**columns))
    return ids


def ready(database: Database, *, limit: int) -> list[int]:
    with database.read() as connection:
        return [job.id for job in candidates.ready(connection, limit=limit, of_device=False)]


def test_no_owner_kind_or_priority_hides_another(each_database: Database) -> None:
    add_ready(each_database, 60, tag="many", priority=9)
    lines = {
        "another owner": add_ready(each_database, 6, tag="b", owner="bob"),
        "a lower priority": add_ready(each_database, 6, tag="low", priority=-3),
        "another kind": add_ready(each_database, 6, tag="nightly", kind="nightly"),
    }
    found = ready(each_database, limit=20)
    for name, ids in lines.items():
        assert [job_id for job_id in found if job_id in ids] == ids[:5], name
    assert len(found) == 20


def test_what_is_paused_or_to_be_tried_later_takes_nobodys_place(each_database: Database) -> None:
    add_ready(each_database, 20, tag="held", held=1)
    add_ready(each_database, 20, tag="later", not_before=1e12)
    ids = add_ready(each_database, 3, tag="now")
    assert ready(each_database, limit=10) == ids


def test_all_priorities_of_a_line_are_seen(each_database: Database) -> None:
    ids = add_ready(each_database, 30, tag="p")
    with each_database.write() as connection:
        connection.execute(sa.update(jobs).values(priority=jobs.c.id))
    assert ready(each_database, limit=1) == ids[::-1]


def test_a_job_avoids_the_devices_that_failed_it(each_database: Database) -> None:
    host = testing.add_host(each_database, cores=(16, 16))
    run = PlannedJob(plan_key="run", stage=Stage.RUN, spec={}, label="run", inputs={}, num_cores=4, num_devices=2)
    testing.add_submission(each_database, Plan(jobs=(run,), points=()))
    (job_id,) = testing.admit_all(each_database)
    claimed = testing.claim(each_database, job_id, node_id=host.device_nodes[0], device_ids=host.device_ids)
    with each_database.write() as connection:
        attempts.fail(
            connection, job_id, claimed.attempt, failure_class=FailureClass.DEVICE_LOST, message="gone", usage=Usage()
        )
        connection.execute(sa.update(jobs).values(not_before=0.0))
    with each_database.read() as connection:
        (job,) = candidates.ready(connection, limit=9, of_device=True)
    assert job.avoid == frozenset(host.device_ids)


@pytest.mark.parametrize("of_device", [True, False])
def test_the_heads_of_lines_are_found_by_the_index_alone(each_database: Database, of_device: bool) -> None:
    for owner in ("ada", "bob"):
        add_ready(each_database, 300, tag=owner, owner=owner, num_cores=4 if of_device else 0)
    if each_database.dialect == "postgresql":
        with each_database.write() as connection:
            connection.execute(sa.text("ANALYZE jobs"))
    lines = [{"owner": "ada", "kind": "sweep", "priority": 0}]
    heads = candidates.heads_query(each_database.dialect, of_device=of_device)
    for query, given in (
        (candidates.lines_query(of_device=of_device), {}),
        (heads, {"rows": lines, "each": 3, "now": 1e12}),
    ):
        steps = explained(each_database, query, given)
        assert f"ix_jobs_ready_for_{'cores' if of_device else 'slots'}" in steps
        assert not re.search(r"SCAN (jobs|one)\b|Seq Scan|Sort|TEMP B-TREE", steps), steps


def test_whether_anything_is_unfinished_takes_no_look_at_what_has_ended(each_database: Database) -> None:
    add_ready(each_database, 300, tag="a")
    with each_database.write() as connection:
        connection.execute(sa.update(jobs).values(state="cancelled", finished_at=1.0))
        assert not candidates.any_unfinished(connection)
    if each_database.dialect == "postgresql":
        with each_database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("ANALYZE jobs"))
    steps = explained(each_database, candidates.UNFINISHED, {})
    assert "ix_jobs_unfinished_plan_key" in steps
    assert not re.search(r"SCAN jobs$|Seq Scan|Sort|TEMP B-TREE", steps), steps
    add_ready(each_database, 1, tag="b")
    with each_database.read() as connection:
        assert candidates.any_unfinished(connection)


def explained(database: Database, query: sa.Select[Any], given: dict[str, Any]) -> str:
    """What the database says it will do for a query."""
    words = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN"}[database.dialect]

    def explain(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        return f"{words} {statement}", parameters

    with database.read() as connection:
        sa.event.listen(connection, "before_cursor_execute", explain, retval=True)
        found = connection.execute(query, given).cursor
        assert found is not None
        return "\n".join(str(row[-1]) for row in found.fetchall())
