"""Why work is done though similar work was done before: in what its key differs from the nearest earlier one. Reads
only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from farm.models import actions, jobs
from farm.states import JobState

_LOOKED_AT = 300  # earlier jobs of the stage, newest first
_DIGEST_CHARS = 12
_ABSENT = "absent"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A part of a key in which two pieces of work differ; None where one has no such part."""

    part: str
    before: Any
    after: Any

    def __str__(self) -> str:
        before, after = (_ABSENT if value is None else str(value) for value in (self.before, self.after))
        if self.part.startswith("inputs."):
            return f"{self.part} changed ({before[:_DIGEST_CHARS]} -> {after[:_DIGEST_CHARS]})"
        return f"{self.part} {before} -> {after}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Miss:
    """Why nothing that was known could be reused.

    Attributes:
        reason: one sentence.
        nearest: job that did the most similar work before; None when there is none.
        differences: in what that differs.
    """

    reason: str
    nearest: int | None = None
    differences: tuple[Difference, ...] = ()


def explain(connection: sa.Connection, job_id: int) -> Miss | None:
    """Why a job's work was, or will be, done; None when its result was reused, or its key is not known yet."""
    job = connection.execute(
        sa.select(
            jobs.c.stage, jobs.c.label, jobs.c.state, jobs.c.action_key, jobs.c.key_parts, jobs.c.skip_cache
        ).where(jobs.c.id == job_id)
    ).one()
    if job.action_key is None or not job.key_parts or job.state == JobState.CACHED:
        return None
    if job.skip_cache:
        return Miss(reason="Its user wants it done anew, whatever is known.")
    same = _same_work(connection, job_id, action_key=job.action_key)
    if same is not None:
        return same
    earlier = connection.execute(
        sa.select(jobs.c.id, jobs.c.label, jobs.c.key_parts)
        .where(
            jobs.c.id < job_id,
            jobs.c.stage == job.stage,
            jobs.c.state == str(JobState.SUCCEEDED),
            jobs.c.action_key != job.action_key,
        )
        .order_by(jobs.c.id.desc())
        .limit(_LOOKED_AT)
    )
    found = [(differences(row.key_parts or {}, job.key_parts), row) for row in earlier]
    if not found:
        return Miss(reason=f"No {job.stage} had been done before.")
    nearest, row = min(found, key=lambda one: (len(one[0]), one[1].label != job.label, -one[1].id))
    reason = f"The most similar work was j{row.id}. It differs: {'; '.join(map(str, nearest))}."
    return Miss(reason=reason, nearest=row.id, differences=nearest)


def _same_work(connection: sa.Connection, job_id: int, *, action_key: str) -> Miss | None:
    """Why the very same work was done again, if it had been done before."""
    before = connection.execute(
        sa.select(jobs.c.id, jobs.c.state)
        .where(jobs.c.id < job_id, jobs.c.action_key == action_key, jobs.c.state == str(JobState.SUCCEEDED))
        .order_by(jobs.c.id.desc())
        .limit(1)
    ).one_or_none()
    if before is None:
        return None
    known = connection.execute(sa.select(actions.c.job_id).where(actions.c.action_key == action_key)).one_or_none()
    lost = "its artifact was damaged or deleted" if known is not None else "nothing of it is remembered"
    return Miss(reason=f"The same work was done by j{before.id}, but {lost}.", nearest=before.id)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The parts of two keys that are not equal, by name."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    return tuple(
        Difference(part=part, before=old.get(part), after=new.get(part))
        for part in sorted(old.keys() | new.keys())
        if old.get(part) != new.get(part)
    )


def _leaves(parts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in parts.items():
        if isinstance(value, Mapping):
            found += _leaves(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found
