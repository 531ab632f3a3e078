"""What a node finds in the database of the nodes that were its queue's before it: their processes have ended."""

from __future__ import annotations

import dataclasses
from typing import Any

import sqlalchemy as sa

from farm.models import attempts, core_leases, jobs, literal, nodes, outbox
from farm.states import JobState

Key = tuple[int, int]  # job, attempt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estate:
    """What earlier nodes of a queue left.

    Attributes:
        running: attempts that nobody carries out any more.
        draining: lost attempts whose cores wait for the word that nothing runs there.
        queued: jobs whose messages may have gone with a node.
    """

    running: tuple[Key, ...]
    draining: tuple[Key, ...]
    queued: tuple[Key, ...]


def estate(connection: sa.Connection, *, node_id: int) -> Estate:
    """What is left of the nodes that had the host and the queue of ``node_id`` before."""
    me = connection.execute(sa.select(nodes.c.host_id, nodes.c.queue).where(nodes.c.id == node_id)).one()
    earlier = sa.select(nodes.c.id).where(
        nodes.c.host_id == me.host_id, nodes.c.queue == me.queue, nodes.c.id != node_id
    )
    running = (
        sa.select(attempts.c.job_id, attempts.c.number)
        .where(attempts.c.state == literal("running"), attempts.c.node_id.in_(earlier))
        .order_by(attempts.c.job_id)
    )
    draining = (
        sa.select(core_leases.c.job_id, core_leases.c.attempt)
        .join(
            attempts,
            sa.and_(attempts.c.job_id == core_leases.c.job_id, attempts.c.number == core_leases.c.attempt),
        )
        .where(core_leases.c.state == "draining", attempts.c.node_id.in_(earlier))
        .distinct()
        .order_by(core_leases.c.job_id)
    )
    queued = (
        sa.select(jobs.c.id, jobs.c.attempt)
        .where(jobs.c.state == literal(JobState.QUEUED), jobs.c.node_id.in_(earlier))
        .order_by(jobs.c.id)
    )
    return Estate(
        running=_keys(connection, running),
        draining=_keys(connection, draining),
        queued=_keys(connection, queued),
    )


def sent_to(connection: sa.Connection, *, queue: str) -> frozenset[Key]:
    """Queued jobs whose message the broker has, or had: what a node of ``queue`` should hear of."""
    rows = connection.execute(
        sa.select(jobs.c.id, jobs.c.attempt)
        .join(nodes, nodes.c.id == jobs.c.node_id)
        .where(
            jobs.c.state == literal(JobState.QUEUED),
            nodes.c.queue == queue,
            jobs.c.id.not_in(sa.select(outbox.c.job_id)),
        )
    )
    return frozenset((row[0], row[1]) for row in rows)


def _keys(connection: sa.Connection, query: sa.Select[Any]) -> tuple[Key, ...]:
    return tuple((row[0], row[1]) for row in connection.execute(query))
