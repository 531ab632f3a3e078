"""What follows when an attempt finds that the bytes of an input are damaged or gone.

The actions that gave the artifact are not believed any more, and the attempt's job waits for what makes it again, see
:mod:`farm.lifecycle.remaking`; then it is tried again. What makes it may find its own inputs damaged in turn. Each
discovery counts as a failure of the job that made it, which bounds them all.
"""

from __future__ import annotations

import sqlalchemy as sa

from farm.db import now
from farm.lifecycle import attempts, following, leases, remaking, results
from farm.lifecycle.failures import Failure
from farm.lifecycle.transitions import hold_graph, move
from farm.models import jobs
from farm.records import Usage
from farm.states import JobState
from qeff_engine.errors import FailureClass


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
    makers = remaking.makers(connection, job_id, [digest])
    if name != "rebuild" or not makers:
        kind = failure.failure_class
        return attempts.fail(connection, job_id, attempt, failure_class=kind, message=message, usage=usage)
    values |= remaking.point_to(connection, job_id, makers, because="damaged", at=at) | {"not_before": 0.0}
    reason = f"an input is made again: {message}"
    source, target = JobState.RUNNING, JobState.WAITING
    move(connection, job_id, name, source=source, target=target, reason=reason, at=at, attempt=attempt, values=values)
    attempts.end_attempt(connection, job_id, attempt, state="failed", usage=usage, at=at, failure=failure)
    leases.release(connection, job_id, attempt=attempt)
    following.release_all(connection, [job_id], at=at)
    return target
