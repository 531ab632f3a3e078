"""What follows when an attempt finds that the bytes of an input are damaged or gone.

Nothing that has ended changes. The actions that gave the artifact are not believed any more, and a new job does the
work of the one that the input came from; whoever needs the artifact is pointed to that, waits for it, and is tried
again. The new job is shared as any work is: by other jobs of the submission, and with other submissions by its action
key. Its own inputs may turn out damaged in turn. Each discovery counts as a failure of the job that made it, which
bounds them all.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from farm.db import now
from farm.lifecycle import attempts, following, holds, leases, results
from farm.lifecycle.failures import Failure
from farm.lifecycle.transitions import hold_graph, move
from farm.models import edges, events, jobs, point_jobs, submissions
from farm.records import Usage
from farm.states import DONE, JobState
from qeff_engine.errors import FailureClass

# What a new job has in common with the one whose work it does again.
_SAME = (
    *("submission_id", "owner", "stage", "label", "model", "spec", "plan_key", "chain", "num_cores", "num_devices"),
    *("exclusive", "needs", "wait_limit_s", "run_limit_s", "deadline_at"),
)
_ENDED_WELL = [str(state) for state in DONE]
_USABLE = [str(state) for state in (JobState.WAITING, JobState.READY, JobState.QUEUED, JobState.RUNNING, *DONE)]


def rebuild_input(
    connection: sa.Connection, job_id: int, attempt: int, *, digest: str, message: str, usage: Usage
) -> JobState:
    """End an attempt that found an input damaged, and let the input be made again; returns the job's state.

    That is ``waiting``, or ``failed`` when it has happened too often. A job that its user has cancelled is
    ``cancelled``; those who wait for it find out for themselves.

    Raises:
        StaleTransition: the attempt is no longer the caller's.
    """
    hold_graph(connection)
    at = now(connection)
    failure = Failure(failure_class=FailureClass.INFRASTRUCTURE, message=message)
    job = connection.execute(
        sa.select(jobs.c.cancel_requested, jobs.c.unsubscribed_at).where(jobs.c.id == job_id)
    ).one()
    results.forget_artifact(connection, digest, at=at)
    if job.cancel_requested or job.unsubscribed_at is not None:
        attempts.cancel_attempt(connection, job_id, attempt, usage=usage)
        return JobState.CANCELLED
    name, _, values = attempts.after_failure(
        connection, job_id, attempt, failure=failure, names=("rebuild", "fail"), at=at, usage=usage
    )
    makers = _makers(connection, job_id, digest=digest)
    if name != "rebuild" or not makers:
        kind = failure.failure_class
        return attempts.fail(connection, job_id, attempt, failure_class=kind, message=message, usage=usage)
    for maker_id in makers:
        successor_id = _successor(connection, maker_id, digest=digest, wanted_by=job_id, at=at)
        mine = (edges.c.child_id == job_id, edges.c.parent_id == maker_id)
        connection.execute(sa.update(edges).where(*mine).values(parent_id=successor_id))
    values |= {"remaining": _undone(connection, job_id), "action_key": None, "key_parts": None, "not_before": 0.0}
    reason = f"an input is made again: {message}"
    source, target = JobState.RUNNING, JobState.WAITING
    move(connection, job_id, name, source=source, target=target, reason=reason, at=at, attempt=attempt, values=values)
    attempts.end_attempt(connection, job_id, attempt, state="failed", usage=usage, at=at, failure=failure)
    leases.release(connection, job_id, attempt=attempt)
    following.release_all(connection, [job_id], at=at)
    return target


def _makers(connection: sa.Connection, job_id: int, *, digest: str) -> list[int]:
    """The inputs' jobs that an artifact came from."""
    parent = jobs.alias()
    query = sa.select(parent.c.id).join(edges, edges.c.parent_id == parent.c.id)
    query = query.where(edges.c.child_id == job_id, parent.c.artifact == digest).distinct().order_by(parent.c.id)
    return list(connection.scalars(query))


def _successor(connection: sa.Connection, maker_id: int, *, digest: str, wanted_by: int, at: float) -> int:
    """The job that does the work of another again: one that was made for somebody else's sake, or a new one."""
    maker = connection.execute(sa.select(jobs).where(jobs.c.id == maker_id)).one()
    found = connection.scalar(
        sa.select(jobs.c.id)
        .where(
            jobs.c.submission_id == maker.submission_id,
            jobs.c.plan_key == maker.plan_key,
            jobs.c.id > maker_id,
            jobs.c.state.in_(_USABLE),
            jobs.c.unsubscribed_at.is_(None),
            sa.or_(jobs.c.artifact.is_(None), jobs.c.artifact != digest),
        )
        .order_by(jobs.c.id.desc())
        .limit(1)
    )
    return int(found) if found is not None else _add(connection, maker, wanted_by=wanted_by, at=at)


def _add(connection: sa.Connection, maker: Any, *, wanted_by: int, at: float) -> int:
    """Add the job that does another's work again, with the same inputs, in the points of who wants it; its id."""
    reason = f"does the work of j{maker.id} again, whose artifact j{wanted_by} found damaged"
    asked = connection.execute(
        sa.select(submissions.c.priority, submissions.c.kind).where(submissions.c.id == maker.submission_id)
    ).one()
    values = {name: maker._mapping[name] for name in _SAME} | {"priority": asked.priority, "kind": asked.kind}
    row = {**values, "state": str(JobState.WAITING), "reason": reason, "created_at": at}
    added: int = connection.execute(sa.insert(jobs).values(**row).returning(jobs.c.id)).scalar_one()
    told = {"transition": "submit", "to_state": str(JobState.WAITING), "reason": reason}
    connection.execute(sa.insert(events).values(job_id=added, attempt=0, at=at, **told))
    same = sa.select(sa.literal(added), edges.c.input, edges.c.parent_id).where(edges.c.child_id == maker.id)
    connection.execute(sa.insert(edges).from_select(["child_id", "input", "parent_id"], same))
    remaining = _undone(connection, added)
    mine = sa.update(jobs).where(jobs.c.id == added)
    connection.execute(mine.values(remaining=remaining, held=holds.OF_SUBMISSION))
    served = sa.select(point_jobs.c.point_id, sa.literal(added)).where(point_jobs.c.job_id == wanted_by)
    connection.execute(sa.insert(point_jobs).from_select(["point_id", "job_id"], served))
    return added


def _undone(connection: sa.Connection, job_id: int) -> int:
    """How many inputs of a job are not done."""
    parent = jobs.alias()
    query = sa.select(sa.func.count()).select_from(edges.join(parent, parent.c.id == edges.c.parent_id))
    return int(
        connection.execute(query.where(edges.c.child_id == job_id, parent.c.state.not_in(_ENDED_WELL))).scalar_one()
    )
