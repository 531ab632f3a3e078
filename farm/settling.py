"""What the end of a job means for others: children, followers, descendants. Called within the job's own transition."""

from __future__ import annotations

import collections

import sqlalchemy as sa

from farm.models import edges, jobs
from farm.states import JobState
from farm.transitions import move


def done(connection: sa.Connection, job_id: int, *, artifact: str, at: float) -> None:
    """A job has its artifact: its followers have it too, and the children of all of them wait for one input less."""
    finished = [job_id]
    for follower in _followers(connection, job_id):
        move(
            connection,
            follower,
            "hit",
            source=JobState.WAITING,
            target=JobState.CACHED,
            reason=f"the same work was done by j{job_id}",
            at=at,
            values={"artifact": artifact, "leader_id": None},
        )
        finished.append(follower)
    _count_down(connection, finished)


def failed(
    connection: sa.Connection, job_id: int, *, deterministic: bool, failure_class: str, message: str, at: float
) -> None:
    """A job failed for good: its followers fail with it when it would fail again, else one of them tries."""
    if deterministic:
        for follower in _followers(connection, job_id):
            move(
                connection,
                follower,
                "fail",
                source=JobState.WAITING,
                target=JobState.FAILED,
                reason=f"the same work failed in j{job_id}",
                at=at,
                values={"leader_id": None, "failure_class": failure_class, "failure_message": message},
            )
            block_descendants(connection, follower, because="failed", at=at)
    else:
        release_followers(connection, job_id, at=at)
    block_descendants(connection, job_id, because="failed", at=at)


def release_followers(connection: sa.Connection, job_id: int, *, at: float) -> None:
    """The followers of a job stand for themselves again: the scheduler admits one, and the rest follow that."""
    for follower in _followers(connection, job_id):
        move(
            connection,
            follower,
            "unfollow",
            source=JobState.WAITING,
            target=JobState.WAITING,
            reason=f"j{job_id} ended without a result",
            at=at,
            values={"leader_id": None},
        )


def block_descendants(connection: sa.Connection, job_id: int, *, because: str, at: float) -> None:
    """Everything that waits for a job, directly or not, is blocked."""
    pending = collections.deque([job_id])
    while pending:
        parent = pending.popleft()
        children = (
            sa.select(jobs.c.id)
            .join(edges, edges.c.child_id == jobs.c.id)
            .where(edges.c.parent_id == parent, jobs.c.state == str(JobState.WAITING))
            .distinct()
        )
        for child in sorted(connection.scalars(children)):
            move(
                connection,
                child,
                "block",
                source=JobState.WAITING,
                target=JobState.BLOCKED,
                reason=f"its input j{job_id} {because}",
                at=at,
                values={"leader_id": None},
            )
            pending.append(child)


def _followers(connection: sa.Connection, job_id: int) -> list[int]:
    return list(connection.scalars(sa.select(jobs.c.id).where(jobs.c.leader_id == job_id).order_by(jobs.c.id)))


def _count_down(connection: sa.Connection, finished: list[int]) -> None:
    """Lower the children's count by the number of their inputs that these jobs are."""
    counted = (
        sa.select(edges.c.child_id, sa.func.count().label("inputs"))
        .where(edges.c.parent_id.in_(finished))
        .group_by(edges.c.child_id)
        .order_by(edges.c.child_id)
    )
    inputs = {row.child_id: row.inputs for row in connection.execute(counted)}
    # One order for all writers, so that two parents that finish together cannot wait for each other.
    connection.execute(sa.select(jobs.c.id).where(jobs.c.id.in_(inputs)).order_by(jobs.c.id).with_for_update())
    for child, number in inputs.items():
        connection.execute(sa.update(jobs).where(jobs.c.id == child).values(remaining=jobs.c.remaining - number))
