"""Every partial index serves the question that it is there for, on both databases: what EXPLAIN says of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from farm import models, schema, testing
from farm.db import Database, open_database
from farm.lifecycle import admission, attempts, expiry, following, outbox, reaping
from farm.records import Usage
from farm.scheduling import candidates, history
from tests.databases import empty_postgresql

NUM_FINISHED, NUM_OTHERS = 3000, 60


def admit(connection: sa.Connection) -> None:
    """A job whose work nobody else does."""
    (job,) = admission.admissible(connection, limit=1)
    admission.admit_all(connection, [(job.id, "nobody's", {})], term=None)


def succeed(connection: sa.Connection) -> None:
    """A running attempt ends."""
    (job_id, number), *_ = reaping.expired(connection, far_s=1.0)
    done = testing.artifact("d0", stage="compile")
    attempts.succeed(connection, job_id, number, artifact=done, figures={}, usage=Usage())


# By index: what of the farm asks the question that it is there for.
CALLS: dict[str, Callable[[sa.Connection], object]] = {
    "uq_jobs_live_action_key": admit,
    "ix_jobs_ready_for_cores": lambda connection: candidates.ready(connection, limit=5, of_device=True),
    "ix_jobs_ready_for_slots": lambda connection: candidates.ready(connection, limit=5, of_device=False),
    "ix_jobs_admissible": lambda connection: admission.admissible(connection, limit=5),
    "ix_jobs_queued": lambda connection: outbox.anything_stale(connection, older_than_s=10.0),
    "ix_jobs_leader_id": lambda connection: following.followers(connection, [1]),
    "ix_jobs_deadline_at": expiry.any_late,
    "ix_jobs_wait_limit_s": expiry.any_late,
    "ix_jobs_unfinished_plan_key": candidates.any_unfinished,
    "uq_attempts_running": lambda connection: reaping.expired(connection, far_s=1.0),
    "ix_attempts_unlearnt": history.anything_new,
    "uq_attempts_succeeded": succeed,
}


def partial_indexes() -> dict[str, sa.Index]:
    """By name, of all tables."""
    found = (index for table in models.metadata.tables.values() for index in table.indexes)
    return {str(index.name): index for index in found if index.dialect_options["sqlite"]["where"] is not None}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def busy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A farm in which most has ended, and some jobs are in each other state."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('busy') / 'farm.db'}"
    else:
        url = empty_postgresql(request.getfixturevalue("postgresql_url"))
    schema.upgrade(url)
    database = open_database(url)
    host = testing.add_host(database)
    submission_id = testing.add_submission(database)
    fill(database, submission_id=submission_id, node_id=host.host_node)
    yield database
    database.dispose()


def fill(database: Database, *, submission_id: int, node_id: int) -> None:
    """Write the rows, and let PostgreSQL learn what they are like."""
    same = {"submission_id": submission_id, "stage": "compile", "label": "", "spec": {}, "created_at": 1.0}
    done = {**same, "state": "succeeded", "ready_at": 1.0, "queued_at": 1.0, "finished_at": 2.0, "attempt": 1}
    rows = [{**done, "plan_key": f"p{n}", "action_key": f"a{n}", "artifact": f"d{n}"} for n in range(NUM_FINISHED)]
    others: list[dict[str, Any]] = []
    kinds: tuple[dict[str, Any], ...] = (
        {"state": "ready", "ready_at": 5.0, "num_cores": 4},
        {"state": "ready", "ready_at": 5.0, "num_cores": 0},
        {"state": "ready", "ready_at": 5.0, "wait_limit_s": 9e9, "held": 1},
        {"state": "waiting", "deadline_at": 9e9, "remaining": 1},
        {"state": "waiting", "remaining": 0},
        {"state": "queued", "queued_at": 1.0, "node_id": node_id, "attempt": 1},
        {"state": "running", "queued_at": 1.0, "node_id": node_id, "attempt": 1},
    )
    for kind in kinds:
        for n in range(NUM_OTHERS):
            name = f"{len(others)}.{n}"
            others.append({**same, "plan_key": f"o{name}", "action_key": f"b{name}", **kind})
    with database.write() as connection:
        digests = [{"digest": row["artifact"], "stage": "compile", "num_bytes": 1, "num_files": 1} for row in rows]
        connection.execute(sa.insert(models.artifacts), [{**row, "created_at": 1.0} for row in digests])
        connection.execute(sa.insert(models.jobs), rows)
        for row in others:
            connection.execute(sa.insert(models.jobs).values(**row))
        ended = sa.select(models.jobs.c.id, models.jobs.c.state).where(models.jobs.c.attempt == 1)
        tries = []
        for row in connection.execute(ended.where(models.jobs.c.state.in_(["succeeded", "running"]))).all():
            running = row.state == "running"
            tries.append(
                {
                    "job_id": row.id,
                    "number": 1,
                    "node_id": node_id,
                    "state": row.state,
                    "lease_until": 2e9 if running else 1.0,
                    "started_at": 1.0,
                    "finished_at": None if running else 2.0,
                    "learnt": int(not running and row.id % 100 > 0),
                }
            )
        connection.execute(sa.insert(models.attempts), tries)
    if database.dialect == "postgresql":
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("ANALYZE"))


def plans(database: Database, call: Callable[[sa.Connection], object]) -> list[str]:
    """What the database says of each statement that a call sends; what the call changes is forgotten."""
    words = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN"}[database.dialect]
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if not many and statement.split()[0] in ("SELECT", "WITH", "UPDATE", "DELETE"):
            sent.append((statement, parameters))

    with database.read() as connection:
        sa.event.listen(connection, "before_cursor_execute", note)
        call(connection)
        connection.rollback()
        sa.event.remove(connection, "before_cursor_execute", note)
        return [
            "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{words} {statement}", parameters))
            for statement, parameters in sent
        ]


def test_every_partial_index_is_asked_for() -> None:
    assert partial_indexes().keys() == CALLS.keys()


@pytest.mark.parametrize("name", sorted(partial_indexes()))
def test_a_partial_index_serves_its_question(busy: Database, name: str) -> None:
    found = plans(busy, CALLS[name])
    served = [plan for plan in found if re.search(rf"\b{name}\b", plan)]
    assert served, "\n\n".join(found)
    for plan in served:
        assert not re.search(r"Seq Scan on (jobs|attempts)|SCAN (jobs|attempts)$", plan, re.MULTILINE), plan
