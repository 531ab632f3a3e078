"""What actions gave, by their keys: artifacts, and failures that would come again."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from farm.lifecycle.failures import Failure
from farm.lifecycle.transitions import chunks
from farm.models import actions, artifacts, jobs
from farm.records import ArtifactRecord, Success

FAILURE = ("failure_class", "failure_message", "failure_line", "failure_advice")  # columns of jobs and actions

_BELIEVED = sa.and_(
    sa.or_(actions.c.expires_at.is_(None), actions.c.expires_at > sa.bindparam("at")),
    sa.or_(
        actions.c.artifact.is_(None),
        sa.exists().where(artifacts.c.digest == actions.c.artifact, artifacts.c.deleted_at.is_(None)),
    ),
)
_KNOWN = sa.select(actions.c.artifact, actions.c.job_id, *(actions.c[name] for name in FAILURE)).where(
    actions.c.action_key == sa.bindparam("key"), _BELIEVED
)
_AMONG = sa.select(actions.c.action_key).where(
    actions.c.action_key.in_(sa.bindparam("keys", expanding=True)), _BELIEVED
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


def known(connection: sa.Connection, action_key: str, *, at: float) -> Any | None:
    """What an action gave: a row with ``artifact``, ``job_id`` and :data:`FAILURE`; None if nothing is known,
    or is not believed any more."""
    return connection.execute(_KNOWN, {"key": action_key, "at": at}).one_or_none()


def artifacts_of(connection: sa.Connection, action_keys: Sequence[str], *, at: float) -> dict[str, str | None]:
    """What actions gave, by key: the artifact; None for those that are known to fail. The rest is absent."""
    found: dict[str, str | None] = {}
    query = _AMONG.add_columns(actions.c.artifact)
    for some in chunks(action_keys):
        found.update((row.action_key, row.artifact) for row in connection.execute(query, {"keys": some, "at": at}))
    return found


def among(connection: sa.Connection, action_keys: Sequence[str], *, at: float) -> set[str]:
    """Those of some keys whose action gave something, be it a failure."""
    found: set[str] = set()
    for some in chunks(action_keys):
        found.update(connection.scalars(_AMONG, {"keys": some, "at": at}))
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
    """Keep what the actions of jobs gave, in place of what they gave before: it is what the next who wants it gets."""
    outcomes = {
        one.job_id: {"artifact": one.artifact.digest, "figures": dict(one.figures), **dict.fromkeys(FAILURE)}
        for one in ended
        if one.as_keyed
    }
    _remember(connection, outcomes, at=at, expires_at=None)


def remember_failure(
    connection: sa.Connection, job_id: int, *, failure: Failure, at: float, believed_for_s: float
) -> None:
    """Keep for a while that a job's action fails, unless it is known to have succeeded.

    Not for ever: the key cannot hold everything that decides about a failure.
    """
    outcome: dict[str, Any] = {"artifact": None, "figures": {}, **failure.columns()}
    _remember(connection, {job_id: outcome}, at=at, expires_at=at + believed_for_s)


def forget_artifact(connection: sa.Connection, digest: str, *, at: float) -> None:
    """Believe no more that an artifact is what actions give: it is damaged or gone, and has to be made anew.

    What the actions were is kept, to explain later why they were done again.
    """
    gave = sa.update(actions).where(actions.c.artifact == digest)
    believed = sa.or_(actions.c.expires_at.is_(None), actions.c.expires_at > at)
    connection.execute(gave.where(believed).values(expires_at=at))


def forget_failures(connection: sa.Connection, job_ids: Sequence[int]) -> None:
    """Forget that the actions of jobs fail."""
    for some in chunks(job_ids):
        keys = sa.select(jobs.c.action_key).where(jobs.c.id.in_(some), jobs.c.action_key.is_not(None))
        connection.execute(
            sa.delete(actions).where(actions.c.failure_class.is_not(None), actions.c.action_key.in_(keys))
        )


def _remember(
    connection: sa.Connection, outcomes: Mapping[int, Mapping[str, Any]], *, at: float, expires_at: float | None
) -> None:
    """Keep the outcomes of jobs' actions, by job."""
    failed = expires_at is not None
    for some in chunks(sorted(outcomes)):
        rows = [
            {
                "action_key": job.action_key,
                "stage": job.stage,
                "parts": job.key_parts or {},
                "job_id": job.id,
                "created_at": at,
                "expires_at": expires_at,
                **outcomes[job.id],
            }
            for job in connection.execute(_ACTIONS_OF, {"jobs": some})
        ]
        if rows:
            connection.execute(_insert_or_replace(connection.dialect.name, failed=failed), rows)


@functools.cache
def _insert_or_replace(dialect: str, *, failed: bool) -> Any:
    """An INSERT of actions that replaces what was known; a failure does not replace a success that is believed."""
    from sqlalchemy.dialects import postgresql, sqlite

    insert = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(actions)
    changed = {column.name: insert.excluded[column.name] for column in actions.c if column.name != "action_key"}
    unbelieved = actions.c.failure_class.is_not(None) | (actions.c.expires_at <= insert.excluded.created_at)
    return insert.on_conflict_do_update(
        index_elements=["action_key"], set_=changed, where=unbelieved if failed else None
    )


@functools.cache
def _insert_or_revive(dialect: str) -> Any:
    """An INSERT of artifacts that brings one back whose bytes had been deleted."""
    from sqlalchemy.dialects import postgresql, sqlite

    insert = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(artifacts)
    again = {"used_at": insert.excluded.used_at, "condemned_at": None, "deleted_at": None}
    return insert.on_conflict_do_update(index_elements=["digest"], set_=again)
