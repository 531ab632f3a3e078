"""What users ask of work that goes on, beside ending it for good: to hand attempts back, to hold submissions, to use a
device or a host no more."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import sqlalchemy as sa

from farm.models import attempts, jobs, literal
from farm.transitions import chunks

Key = tuple[int, int]  # job, attempt

_WISHES = (
    sa.select(attempts.c.job_id, attempts.c.number, jobs.c.cancel_requested, attempts.c.hand_back)
    .join(jobs, jobs.c.id == attempts.c.job_id)
    .where(
        attempts.c.job_id.in_(sa.bindparam("job_ids", expanding=True)),
        attempts.c.state == literal("running"),
        sa.or_(jobs.c.cancel_requested, attempts.c.hand_back.is_not(None)),
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked of a running attempt.

    Attributes:
        cancel: its job shall end; otherwise the attempt shall, and the job be placed again.
        reason: one sentence for people.
    """

    cancel: bool
    reason: str


def wishes(connection: sa.Connection, keys: Sequence[Key]) -> dict[Key, Wish]:
    """What is asked of some running attempts; those of which nothing is asked are absent."""
    wanted, found = set(keys), {}
    for some in chunks(sorted({job_id for job_id, _ in keys})):
        for row in connection.execute(_WISHES, {"job_ids": some}):
            key = (row.job_id, row.number)
            if key in wanted:
                reason = "cancelled by a user" if row.cancel_requested else row.hand_back
                found[key] = Wish(cancel=bool(row.cancel_requested), reason=reason)
    return found
