"""What the scheduler does about attempts and nodes that went silent."""

from __future__ import annotations

import sqlalchemy as sa

from farm import attempts as node_side
from farm import leadership, leases, settling
from farm.db import now
from farm.models import attempts, jobs, literal, nodes
from farm.records import Usage
from farm.states import JobState
from farm.transitions import hold_graph, move
from qeff_engine.errors import FailureClass


def expired(connection: sa.Connection) -> list[tuple[int, int]]:
    """Running attempts (job, attempt) whose lease is over."""
    rows = connection.execute(
        sa.select(attempts.c.job_id, attempts.c.number)
        .where(attempts.c.state == literal("running"), attempts.c.lease_until < now(connection))
        .order_by(attempts.c.job_id)
    )
    return [(row.job_id, row.number) for row in rows]


def running_on(connection: sa.Connection, *, node_id: int) -> list[tuple[int, int]]:
    """Running attempts (job, attempt) of a node."""
    rows = connection.execute(
        sa.select(attempts.c.job_id, attempts.c.number)
        .where(attempts.c.state == literal("running"), attempts.c.node_id == node_id)
        .order_by(attempts.c.job_id)
    )
    return [(row.job_id, row.number) for row in rows]


def stranded(connection: sa.Connection, *, max_age_s: float) -> list[tuple[int, int]]:
    """Queued jobs (job, attempt) on a queue that no live node listens to."""
    placed, other = nodes.alias(), nodes.alias()
    alive = sa.select(other.c.queue).where(
        other.c.stopped_at.is_(None), other.c.heartbeat_at >= now(connection) - max_age_s
    )
    rows = connection.execute(
        sa.select(jobs.c.id, jobs.c.attempt)
        .join(placed, placed.c.id == jobs.c.node_id)
        .where(jobs.c.state == literal(JobState.QUEUED), placed.c.queue.not_in(alive))
    )
    return sorted((row.id, row.attempt) for row in rows)  # sorting in SQL would lead SQLite to read all jobs by id


def lose(connection: sa.Connection, job_id: int, attempt: int, *, reason: str, term: int | None) -> JobState:
    """An attempt's node is silent: its slot is free, its cores drain; returns ``ready``, ``failed`` or ``cancelled``.

    Raises:
        StaleTransition: the attempt ended meanwhile, or the term is over.
    """
    leadership.require_term(connection, term)
    hold_graph(connection)
    at = now(connection)
    job = connection.execute(
        sa.select(jobs.c.failures, jobs.c.cancel_requested).where(jobs.c.id == job_id).with_for_update()
    ).one()
    if job.cancel_requested:
        name, target, values = "cancel", JobState.CANCELLED, {}
    elif job.failures < node_side.RETRIES[FailureClass.WORKER_LOST]:
        name, target = "lose", JobState.READY
        values = {"failures": job.failures + 1, "node_id": None}
    else:
        name, target = "lose", JobState.FAILED
        values = {"failures": job.failures + 1, "failure_class": "worker_lost", "failure_message": reason}
    move(
        connection,
        job_id,
        name,
        source=JobState.RUNNING,
        target=target,
        reason=reason,
        at=at,
        attempt=attempt,
        values=values,
    )
    failure = (FailureClass.WORKER_LOST, reason)
    node_side.end_attempt(connection, job_id, attempt, state="lost", usage=Usage(), at=at, failure=failure)
    leases.drain(connection, job_id, attempt=attempt, at=at)
    if target is JobState.FAILED:
        settling.failed(connection, job_id, deterministic=False, failure_class="worker_lost", message=reason, at=at)
    elif target is JobState.CANCELLED:
        settling.release_followers(connection, [job_id], at=at)
        settling.block_descendants(connection, job_id, because="was cancelled", at=at)
    return target
