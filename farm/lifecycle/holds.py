"""Which jobs are held: not placed, because a user paused what wants them.

A job is held while its submission is paused, but not while a job that is not held follows it: a pause must not keep
others from their results. ``jobs.held`` says so; whoever changes one of the reasons calls :func:`settle`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from farm.lifecycle.transitions import chunks
from farm.models import jobs, submissions

_follower = jobs.alias()
_paused = sa.exists().where(submissions.c.id == jobs.c.submission_id, submissions.c.paused_at.is_not(None))
_wanted = sa.exists().where(_follower.c.leader_id == jobs.c.id, _follower.c.held == 0)

# The value of ``held`` for a job that nobody follows.
OF_SUBMISSION = sa.case((_paused, 1), else_=0)

_SETTLE = sa.update(jobs).values(
    held=sa.case(
        (_wanted, 0),
        (jobs.c.unsubscribed_at.is_not(None), 1),  # it works for its followers alone
        else_=OF_SUBMISSION,
    )
)
_LEADERS = sa.select(jobs.c.leader_id).where(jobs.c.leader_id.is_not(None)).distinct()


def settle(connection: sa.Connection, job_ids: Iterable[int]) -> None:
    """Work out anew which of some jobs that have not ended are held; for a caller that holds the graph."""
    for some in chunks(sorted(set(job_ids))):
        connection.execute(_SETTLE.where(jobs.c.id.in_(some), jobs.c.finished_at.is_(None)))


def leaders(connection: sa.Connection, job_ids: Sequence[int]) -> list[int]:
    """The jobs that some of these follow."""
    found: set[int] = set()
    for some in chunks(job_ids):
        found.update(connection.scalars(_LEADERS.where(jobs.c.id.in_(some))))
    return sorted(found)


def of_submission(connection: sa.Connection, submission_id: int) -> None:
    """Work out which jobs are held after a submission was paused or resumed: its own, and those that they follow."""
    mine = jobs.c.submission_id == submission_id
    connection.execute(sa.update(jobs).where(mine, jobs.c.finished_at.is_(None)).values(held=OF_SUBMISSION))
    leader = jobs.alias()
    followed = (
        sa.select(leader.c.id)
        .join(jobs, jobs.c.leader_id == leader.c.id)
        .where(sa.or_(mine, leader.c.submission_id == submission_id))
        .distinct()
    )
    settle(connection, list(connection.scalars(followed)))
