"""What actions gave, by their keys: artifacts, and failures that would come again."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from farm.failures import Failure
from farm.models import actions, artifacts, jobs
from farm.records import ArtifactRecord, Success
from farm.transitions import chunks

FAILURE = ("failure_class", "failure_message", "failure_line", "failure_advice")  # columns of jobs and actions

_KNOWN = sa.select(actions.c.artifact, actions.c.job_id, *(actions.c[name] for name in FAILURE)).where(
    actions.c.action_key == sa.bindparam("key")
)
_ACTIONS_OF = (
    sa.select(jobs.c.id, jobs.c.action_key, jobs.c.stage, jobs.c.key_parts)
    .where(jobs.c.id.in_(sa.bindparam("jobs", expanding=True)), jobs.c.action_key.is_not(None))
    .order_by(jobs.c.action_key)
)
_USE = (
    sa.update(artifacts)
    .where(artifacts.c.digest == sa.bindparam("the_digest"))
    .values(condemned_at=None, used_at=sa.bindparam("at"))
)
_NOTED_FOR_S = 3600.0


def known(connection: sa.Connection, action_key: str) -> Any | None:
    """What an action gave: a row with ``artifact``, ``job_id`` and :data:`FAILURE`; None if nothing is known."""
    return connection.execute(_KNOWN, {"key": action_key}).one_or_none()


def among(connection: sa.Connection, action_keys: Sequence[str]) -> set[str]:
    """Those of some keys whose action gave something, be it a failure."""
    found: set[str] = set()
    for some in chunks(action_keys):
        found.update(connection.scalars(sa.select(actions.c.action_key).where(actions.c.action_key.in_(some))))
    return found


def record_all(connection: sa.Connection, published: Sequence[ArtifactRecord], *, at: float) -> None:
    """Write that artifacts are published; they may have been before, and deleted since."""
    rows = [
        {
            "digest": one.digest,
            "stage": one.stage,
            "num_bytes": one.num_bytes,
            "num_files": one.num_files,
            "created_at": at,
            "used_at": at,
        }
        # In one order, or two writers could wait for each other.
        for _, one in sorted({one.digest: one for one in published}.items())
    ]
    connection.execute(_insert_or_revive(connection.dialect.name), rows)


def use(connection: sa.Connection, digests: Iterable[str], *, at: float) -> None:
    """Note that artifacts are in use again: the garbage collection leaves those alone that it had chosen."""
    for digest in sorted(set(digests)):  # in one order, as above
        connection.execute(_USE, {"the_digest": digest, "at": at})


def is_use_worth_noting(used_at: float | None, condemned_at: float | None, *, at: float) -> bool:
    """Whether a use has to be written down: the garbage collection counts in days, so once an hour is enough."""
    return condemned_at is not None or used_at is None or used_at < at - _NOTED_FOR_S


def remember_successes(connection: sa.Connection, ended: Sequence[Success], *, at: float) -> None:
    """Keep what the actions of jobs gave for the next who wants it."""
    outcomes = {
        one.job_id: {"artifact": one.artifact.digest, "figures": dict(one.figures), "created_at": at}
        for one in ended
        if one.as_keyed
    }
    _remember(connection, outcomes)


def remember_failure(connection: sa.Connection, job_id: int, *, failure: Failure, at: float) -> None:
    """Keep that a job's action fails."""
    _remember(connection, {job_id: {**failure.columns(), "figures": {}, "created_at": at}})


def forget_failures(connection: sa.Connection, job_ids: Sequence[int]) -> None:
    """Forget that the actions of jobs fail."""
    for some in chunks(job_ids):
        keys = sa.select(jobs.c.action_key).where(jobs.c.id.in_(some), jobs.c.action_key.is_not(None))
        connection.execute(
            sa.delete(actions).where(actions.c.failure_class.is_not(None), actions.c.action_key.in_(keys))
        )


def _remember(connection: sa.Connection, outcomes: Mapping[int, Mapping[str, Any]]) -> None:
    """Keep the outcomes of jobs' actions, by job."""
    for some in chunks(sorted(outcomes)):
        rows = [
            {
                "action_key": job.action_key,
                "stage": job.stage,
                "parts": job.key_parts or {},
                "job_id": job.id,
                **outcomes[job.id],
            }
            for job in connection.execute(_ACTIONS_OF, {"jobs": some})
        ]
        if rows:
            connection.execute(_insert_or_ignore(connection.dialect.name, actions), rows)


@functools.cache
def _insert_or_ignore(dialect: str, table: sa.Table) -> Any:
    """The database's own INSERT, which knows ON CONFLICT."""
    from sqlalchemy.dialects import postgresql, sqlite

    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing()


@functools.cache
def _insert_or_revive(dialect: str) -> Any:
    """An INSERT of artifacts that brings one back whose bytes had been deleted."""
    from sqlalchemy.dialects import postgresql, sqlite

    insert = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(artifacts)
    again = {"used_at": insert.excluded.used_at, "condemned_at": None, "deleted_at": None}
    return insert.on_conflict_do_update(index_elements=["digest"], set_=again)
