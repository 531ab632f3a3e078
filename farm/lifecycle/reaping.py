"""What the scheduler does about attempts and nodes that went silent."""

from __future__ import annotations

import collections
from typing import Any

import sqlalchemy as sa

from farm.db import now
from farm.lifecycle import attempts as node_side
from farm.lifecycle import following, leadership, leases, settling
from farm.lifecycle.failures import Failure
from farm.lifecycle.transitions import hold_graph, move, note
from farm.models import attempts, core_leases, devices, jobs, literal, nodes
from farm.records import Usage
from farm.states import JobState
from qeff_engine.errors import FailureClass

_RUNNING = (
    sa.select(attempts.c.job_id, attempts.c.number)
    .where(attempts.c.state == literal("running"))
    .order_by(attempts.c.job_id)
)
_EXPIRED = _RUNNING.where(
    sa.or_(attempts.c.lease_until < sa.bindparam("now"), attempts.c.lease_until > sa.bindparam("far"))
)
_OVERDUE = _RUNNING.where(attempts.c.run_until < sa.bindparam("since"))
_ON_NODE = _RUNNING.where(attempts.c.node_id == sa.bindparam("node"))
_placed, _other = nodes.alias(), nodes.alias()
_STRANDED = (
    sa.select(jobs.c.id.label("job_id"), jobs.c.attempt.label("number"))
    .join(_placed, _placed.c.id == jobs.c.node_id)
    .where(
        jobs.c.state == literal(JobState.QUEUED),
        _placed.c.queue.not_in(
            sa.select(_other.c.queue).where(
                _other.c.stopped_at.is_(None),
                _other.c.heartbeat_at.between(sa.bindparam("since"), sa.bindparam("until")),
            )
        ),
    )
)


def expired(connection: sa.Connection, *, far_s: float) -> list[tuple[int, int]]:
    """Running attempts (job, attempt) whose lease is over, or ends further ahead than ``far_s``: the clock was set back
    since it was last renewed."""
    at = now(connection)
    return _keys(connection, _EXPIRED, {"now": at, "far": at + far_s})


def overdue(connection: sa.Connection, *, grace_s: float) -> list[tuple[int, int]]:
    """Running attempts (job, attempt) whose node did not end them though their time was over ``grace_s`` ago."""
    return _keys(connection, _OVERDUE, {"since": now(connection) - grace_s})


def running_on(connection: sa.Connection, *, node_id: int) -> list[tuple[int, int]]:
    """Running attempts (job, attempt) of a node."""
    return _keys(connection, _ON_NODE, {"node": node_id})


def _keys(
    connection: sa.Connection, query: sa.Select[tuple[int, int]], values: dict[str, Any]
) -> list[tuple[int, int]]:
    return [(row.job_id, row.number) for row in connection.execute(query, values)]


def stranded(connection: sa.Connection, *, max_age_s: float) -> list[tuple[int, int]]:
    """Queued jobs (job, attempt) on a queue that no live node listens to."""
    at = now(connection)
    found = _keys(connection, _STRANDED, {"since": at - max_age_s, "until": at + max_age_s})
    return sorted(found)  # sorting in SQL would lead SQLite to read all jobs by id


def lose(connection: sa.Connection, job_id: int, attempt: int, *, reason: str, term: int | None) -> JobState:
    """An attempt's node is silent: its slot is free, its cores drain; returns ``ready``, ``failed`` or ``cancelled``.

    Raises:
        StaleTransition: the attempt ended meanwhile, or the term is over.
    """
    return _take(
        connection,
        job_id,
        attempt,
        "lose",
        failure=Failure(failure_class=FailureClass.WORKER_LOST, message=reason),
        term=term,
    )


def overrun(connection: sa.Connection, job_id: int, attempt: int, *, reason: str, term: int | None) -> JobState:
    """An attempt goes on though its time is over: as :func:`lose`, but as a timeout.

    Raises:
        StaleTransition: the attempt ended meanwhile, or the term is over.
    """
    return _take(
        connection,
        job_id,
        attempt,
        "overrun",
        failure=Failure(failure_class=FailureClass.TIMEOUT, message=reason),
        term=term,
    )


def _take(
    connection: sa.Connection,
    job_id: int,
    attempt: int,
    name: str,
    *,
    failure: Failure,
    term: int | None,
) -> JobState:
    """Take an attempt from its node. What is left of it there is for its host to end, and to confirm."""
    leadership.require_term(connection, term)
    hold_graph(connection)
    at = now(connection)
    reason = failure.message
    asked = sa.select(jobs.c.cancel_requested).where(jobs.c.id == job_id).with_for_update()
    was_asked = connection.execute(asked).scalar_one()
    name, target, values = node_side.after_failure(
        connection, job_id, attempt, failure=failure, names=(name, name), at=at
    )
    values.pop("not_before", None)  # it has waited for a lease already
    if was_asked:
        name, target, values = "cancel", JobState.CANCELLED, {}
    source = JobState.RUNNING
    move(connection, job_id, name, source=source, target=target, reason=reason, at=at, attempt=attempt, values=values)
    node_side.end_attempt(connection, job_id, attempt, state="lost", usage=Usage(), at=at, failure=failure)
    leases.drain(connection, job_id, attempt=attempt, at=at)
    if target is JobState.FAILED:
        settling.failed(connection, job_id, failure=failure, at=at)
    elif target is JobState.CANCELLED:
        following.release_all(connection, [job_id], at=at)
        settling.block_descendants(connection, job_id, because="was cancelled", at=at)
    return target


def release_draining(connection: sa.Connection, *, host_id: int, device_id: int | None, by: str) -> int:
    """Free the draining cores of a host, or of one device of it, on a user's word; returns how many.

    For a host that never comes back to say that nothing runs there. If something does, it may spoil the next run.
    """
    hold_graph(connection)
    at = now(connection)
    here = sa.select(devices.c.id).where(devices.c.host_id == host_id)
    if device_id is not None:
        here = here.where(devices.c.id == device_id)
    freed = connection.execute(
        sa.delete(core_leases)
        .where(core_leases.c.state == "draining", core_leases.c.device_id.in_(here))
        .returning(core_leases.c.job_id, core_leases.c.attempt)
    ).all()
    for (job_id, attempt), count in sorted(collections.Counter((row.job_id, row.attempt) for row in freed).items()):
        reason = f"{by} freed {count} cores of attempt {attempt} without its host's word that nothing runs there"
        note(connection, job_id, "release_cores", reason=reason, at=at)
    return len(freed)
