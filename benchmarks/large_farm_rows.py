"""Rows of a farm that has been busy for months, made by the database itself."""

from __future__ import annotations

import sqlalchemy as sa

from farm.db import Database

NUM_FINISHED, NUM_READY = 1_000_000, 100_000
_NUM_SUBMISSIONS = 1_000

_NUMBERS = "WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < {count})"

# Each statement is SQLite's and PostgreSQL's alike. Job i of the finished ones is one of submission i % 1000 + 1.
_STATEMENTS = (
    f"""INSERT INTO submissions (id, name, owner, labels, request, created_at)
    {_NUMBERS.format(count=_NUM_SUBMISSIONS)}
    SELECT i, 'sweep', 'owner' || (i % 7), '{{}}', '{{}}', 1e9 + i FROM numbers""",
    f"""INSERT INTO artifacts (digest, stage, num_bytes, num_files, created_at)
    {_NUMBERS.format(count=NUM_FINISHED)}
    SELECT 'd' || i, 'compile', 1, 1, 1e9 FROM numbers""",
    f"""INSERT INTO jobs (id, submission_id, owner, stage, label, spec, plan_key, action_key, state, artifact,
        num_cores, num_devices, attempt, created_at, ready_at, queued_at, finished_at)
    {_NUMBERS.format(count=NUM_FINISHED)}
    SELECT i, i % {_NUM_SUBMISSIONS} + 1, 'owner' || (i % 7), 'compile', 'compile', '{{"num_cores": 8}}', 'p' || i,
        'a' || i, 'succeeded', 'd' || i, 0, 0, 1, 1e9 + i, 1e9 + i, 1e9 + i, 1e9 + i + 60 FROM numbers""",
    f"""INSERT INTO jobs (id, submission_id, owner, stage, label, spec, plan_key, action_key, state, priority,
        num_cores, num_devices, ram_bytes, created_at, ready_at)
    {_NUMBERS.format(count=NUM_READY)}
    SELECT {NUM_FINISHED} + i, i % {_NUM_SUBMISSIONS} + 1, 'owner' || (i % 7),
        CASE WHEN i % 2 = 0 THEN 'run' ELSE 'compile' END, 'work', '{{"num_cores": 8}}', 'q' || i, 'b' || i, 'ready',
        i % 3, CASE WHEN i % 2 = 0 THEN 4 + 2 * (i % 6) ELSE 0 END, CASE WHEN i % 2 = 0 THEN 1 ELSE 0 END,
        1000000, 1.5e9 + i, 1.5e9 + i FROM numbers""",
)


def fill(database: Database) -> None:
    """Write the rows, and let the database learn what they are like."""
    with database.write() as connection:
        for statement in _STATEMENTS:
            connection.execute(sa.text(statement))
        if database.dialect == "postgresql":
            for table in ("jobs", "submissions"):
                sequence = f"pg_get_serial_sequence('{table}', 'id')"
                connection.execute(sa.text(f"SELECT setval({sequence}, (SELECT max(id) FROM {table}))"))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ANALYZE"))
