"""The artifacts that the database knows: listing them, finding one by what people write, pinning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from farm.db import now
from farm.errors import NotFound, Refused, Usage
from farm.lifecycle.transitions import chunks
from farm.models import actions, artifacts, edges, jobs

_LEAST_PREFIX = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact as its row says.

    Attributes:
        used_at: when it was last an input or a hit, or made.
        pinned: why it is kept whatever happens; None: it may be collected.
        condemned_at: when the garbage collection chose it.
        deleted_at: since when its bytes are gone.
        num_jobs: jobs that have it as their result.
    """

    digest: str
    stage: str
    num_bytes: int
    num_files: int
    created_at: float
    used_at: float
    pinned: str | None
    condemned_at: float | None
    deleted_at: float | None
    num_jobs: int

    @property
    def state(self) -> str:
        """``pinned``, ``condemned``, ``deleted``, or ``kept``."""
        if self.deleted_at is not None:
            return "deleted"
        if self.pinned is not None:
            return "pinned"
        return "kept" if self.condemned_at is None else "condemned"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Totals:
    """All artifacts together; bytes that several of them share count for each."""

    num_artifacts: int
    num_bytes: int
    num_pinned: int
    num_condemned: int


def artifact_list(
    connection: sa.Connection, *, stage: str | None = None, deleted: bool = False, limit: int | None = 50
) -> list[Artifact]:
    """Artifacts, last used first; with ``deleted`` also those whose bytes are gone."""
    used_at = sa.func.coalesce(artifacts.c.used_at, artifacts.c.created_at)
    query = sa.select(artifacts).order_by(used_at.desc(), artifacts.c.digest).limit(limit)
    if stage is not None:
        query = query.where(artifacts.c.stage == stage)
    if not deleted:
        query = query.where(artifacts.c.deleted_at.is_(None))
    rows = connection.execute(query).all()
    counts: dict[str, int] = {}
    for some in chunks([row.digest for row in rows]):
        tally = sa.select(jobs.c.artifact, sa.func.count()).where(jobs.c.artifact.in_(some)).group_by(jobs.c.artifact)
        counts |= {row[0]: row[1] for row in connection.execute(tally)}
    return [_artifact(row, num_jobs=counts.get(row.digest, 0)) for row in rows]


def artifact(connection: sa.Connection, text: str) -> Artifact:
    """The artifact whose digest begins so.

    Raises:
        Usage: several do, or it is too short to tell.
        NotFound: none does.
    """
    if len(text) < _LEAST_PREFIX or set(text) - set("0123456789abcdef"):
        raise Usage(f"'{text}' is no digest, expected at least {_LEAST_PREFIX} of its hexadecimal digits.")
    rows = connection.execute(
        sa.select(artifacts).where(artifacts.c.digest >= text, artifacts.c.digest < f"{text}g").limit(2)
    ).all()
    if not rows:
        raise NotFound(f"There is no artifact {text}. `farm artifacts` lists those that exist.")
    if len(rows) > 1:
        raise Usage(f"Several artifacts begin with {text}. Give more digits of the digest.")
    num_jobs = connection.scalar(sa.select(sa.func.count()).where(jobs.c.artifact == rows[0].digest))
    return _artifact(rows[0], num_jobs=int(num_jobs or 0))


def is_digest(text: str) -> bool:
    """Whether a word can only be meant as a digest's beginning, not as the id of a job or a submission."""
    return len(text) >= _LEAST_PREFIX and not set(text) - set("0123456789abcdef") and not text.isdecimal()


def _artifact(row: Any, *, num_jobs: int) -> Artifact:
    names = {field.name for field in dataclasses.fields(Artifact)} - {"num_jobs", "used_at"}
    fields = {name: getattr(row, name) for name in names}
    return Artifact(**fields, used_at=max(row.created_at, row.used_at or 0.0), num_jobs=num_jobs)


def makers(connection: sa.Connection, digest: str, *, limit: int = 20) -> list[int]:
    """The jobs that have an artifact as their result, newest first."""
    query = sa.select(jobs.c.id).where(jobs.c.artifact == digest).order_by(jobs.c.id.desc()).limit(limit)
    return list(connection.scalars(query))


def users(connection: sa.Connection, digest: str, *, limit: int = 20) -> list[int]:
    """The jobs that have an artifact as an input, newest first."""
    parents = jobs.alias()
    query = (
        sa.select(edges.c.child_id)
        .join(parents, parents.c.id == edges.c.parent_id)
        .where(parents.c.artifact == digest)
        .distinct()
        .order_by(edges.c.child_id.desc())
        .limit(limit)
    )
    return list(connection.scalars(query))


def totals(connection: sa.Connection) -> Totals:
    """How many artifacts there are, and how large they are."""
    row = connection.execute(
        sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(artifacts.c.num_bytes), 0),
            sa.func.count(artifacts.c.pinned),
            sa.func.count(artifacts.c.condemned_at),
        ).where(artifacts.c.deleted_at.is_(None))
    ).one()
    return Totals(num_artifacts=row[0], num_bytes=int(row[1]), num_pinned=row[2], num_condemned=row[3])


def results_of(connection: sa.Connection, *, job_id: int | None = None, submission_id: int | None = None) -> list[str]:
    """The artifacts that a job, or all jobs of a submission, have so far."""
    query = sa.select(jobs.c.artifact).where(jobs.c.artifact.is_not(None)).distinct()
    if job_id is not None:
        query = query.where(jobs.c.id == job_id)
    if submission_id is not None:
        query = query.where(jobs.c.submission_id == submission_id)
    return sorted(connection.scalars(query))


def pin(connection: sa.Connection, digests: Sequence[str], *, reason: str) -> None:
    """Keep artifacts whatever happens, also those that were to be deleted.

    Raises:
        Refused: the bytes of one are gone already.
    """
    at = now(connection)
    for some in chunks(sorted(digests)):
        pinned = connection.scalars(
            sa.update(artifacts)
            .where(artifacts.c.digest.in_(some), artifacts.c.deleted_at.is_(None))
            .values(pinned=reason, condemned_at=None, used_at=at)
            .returning(artifacts.c.digest)
        ).all()
        lost = sorted(set(some) - set(pinned))
        if lost:
            raise Refused(
                f"The artifact {lost[0][:12]} has been deleted by the garbage collection. Submit its work again, then "
                "pin what that gives."
            )


def unpin(connection: sa.Connection, digests: Sequence[str]) -> int:
    """Let artifacts be collected again; how many were pinned."""
    count = 0
    for some in chunks(sorted(digests)):
        changed = connection.execute(
            sa.update(artifacts)
            .where(artifacts.c.digest.in_(some), artifacts.c.pinned.is_not(None))
            .values(pinned=None)
        )
        count += changed.rowcount
    return count


def forget(connection: sa.Connection, digests: Sequence[str], *, at: float) -> int:
    """Write that the bytes of artifacts are gone: no action leads to them any more; how many had been there.

    The jobs that made them still say so. For a caller that holds the graph.
    """
    count = 0
    for some in chunks(sorted(digests)):
        changed = connection.execute(
            sa.update(artifacts)
            .where(artifacts.c.digest.in_(some), artifacts.c.deleted_at.is_(None))
            .values(deleted_at=at)
        )
        count += changed.rowcount
        connection.execute(sa.delete(actions).where(actions.c.artifact.in_(some)))
    return count
