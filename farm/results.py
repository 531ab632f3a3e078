"""What actions gave, by their keys: artifacts, and failures that would come again."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from farm.models import actions, artifacts, jobs
from farm.records import ArtifactRecord
from farm.transitions import chunks

_KNOWN = sa.select(actions.c.artifact, actions.c.failure_class, actions.c.failure_message, actions.c.job_id).where(
    actions.c.action_key == sa.bindparam("key")
)
_ACTION_OF = sa.select(jobs.c.action_key, jobs.c.stage, jobs.c.key_parts).where(jobs.c.id == sa.bindparam("job"))


def known(connection: sa.Connection, action_key: str) -> Any | None:
    """What an action gave: a row with ``artifact``, ``failure_class``, ``failure_message``, ``job_id``; None if
    nothing is known."""
    return connection.execute(_KNOWN, {"key": action_key}).one_or_none()


def among(connection: sa.Connection, action_keys: Sequence[str]) -> set[str]:
    """Those of some keys whose action gave something, be it a failure."""
    found: set[str] = set()
    for some in chunks(action_keys):
        found.update(connection.scalars(sa.select(actions.c.action_key).where(actions.c.action_key.in_(some))))
    return found


def record(connection: sa.Connection, artifact: ArtifactRecord, *, at: float) -> None:
    """Write that an artifact is published; it may have been before."""
    connection.execute(
        _insert_or_ignore(connection.dialect.name, artifacts),
        {
            "digest": artifact.digest,
            "stage": artifact.stage,
            "num_bytes": artifact.num_bytes,
            "num_files": artifact.num_files,
            "created_at": at,
        },
    )


def remember_success(
    connection: sa.Connection, job_id: int, *, artifact: str, figures: Mapping[str, Any], at: float
) -> None:
    """Keep what a job's action gave for the next who wants it."""
    _remember(connection, job_id, {"artifact": artifact, "figures": dict(figures), "created_at": at})


def remember_failure(connection: sa.Connection, job_id: int, *, failure_class: str, message: str, at: float) -> None:
    """Keep that a job's action fails."""
    failure = {"failure_class": failure_class, "failure_message": message}
    _remember(connection, job_id, {**failure, "figures": {}, "created_at": at})


def forget_failures(connection: sa.Connection, job_ids: Sequence[int]) -> None:
    """Forget that the actions of jobs fail."""
    for some in chunks(job_ids):
        keys = sa.select(jobs.c.action_key).where(jobs.c.id.in_(some), jobs.c.action_key.is_not(None))
        connection.execute(
            sa.delete(actions).where(actions.c.failure_class.is_not(None), actions.c.action_key.in_(keys))
        )


def _remember(connection: sa.Connection, job_id: int, outcome: Mapping[str, Any]) -> None:
    action = connection.execute(_ACTION_OF, {"job": job_id}).one()
    if action.action_key is not None:
        what = {"action_key": action.action_key, "stage": action.stage, "parts": action.key_parts or {}}
        connection.execute(_insert_or_ignore(connection.dialect.name, actions), {**what, "job_id": job_id, **outcome})


@functools.cache
def _insert_or_ignore(dialect: str, table: sa.Table) -> Any:
    """The database's own INSERT, which knows ON CONFLICT."""
    from sqlalchemy.dialects import postgresql, sqlite

    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing()
