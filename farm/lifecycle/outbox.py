"""Messages that were decided on but not yet handed to the broker. Sending twice is harmless; forgetting is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from farm.db import insert_all, now
from farm.lifecycle import leadership
from farm.lifecycle.transitions import hold_graph
from farm.models import jobs, literal, nodes, outbox
from farm.records import Message
from farm.states import JobState

_STALE = (
    sa.select(jobs.c.id, jobs.c.attempt, nodes.c.queue)
    .join(nodes, nodes.c.id == jobs.c.node_id)
    .where(
        jobs.c.state == literal(JobState.QUEUED),
        # After, when the clock was set back.
        sa.or_(jobs.c.queued_at < sa.bindparam("before"), jobs.c.queued_at > sa.bindparam("after")),
        jobs.c.id.not_in(sa.select(outbox.c.job_id)),
    )
)


def put(connection: sa.Connection, messages: Iterable[tuple[str, int, int]], *, at: float) -> None:
    """Leave messages (queue, job, attempt) in the transaction that decided on them."""
    rows = [
        {"queue": queue, "job_id": job_id, "attempt": attempt, "created_at": at} for queue, job_id, attempt in messages
    ]
    insert_all(connection, outbox, rows)


def take_outbox(connection: sa.Connection, *, limit: int) -> list[Message]:
    """The oldest messages; they stay until :func:`delete_outbox`."""
    rows = connection.execute(
        sa.select(outbox.c.id, outbox.c.queue, outbox.c.job_id, outbox.c.attempt).order_by(outbox.c.id).limit(limit)
    )
    return [Message(id=row.id, queue=row.queue, job_id=row.job_id, attempt=row.attempt) for row in rows]


def delete_outbox(connection: sa.Connection, ids: Sequence[int], *, term: int | None) -> None:
    """Forget messages that the broker has.

    Raises:
        StaleTransition: the term is over. Another scheduler sends, and SQLite may have given an id to another message.
    """
    leadership.require_term(connection, term)
    if ids:
        connection.execute(sa.delete(outbox).where(outbox.c.id.in_(ids)))


def anything_stale(connection: sa.Connection, *, older_than_s: float) -> bool:
    """Whether :func:`resend_stale` would find something: asked each second, and nothing is written for it."""
    at = now(connection)
    times = {"before": at - older_than_s, "after": at + older_than_s}
    return connection.execute(_STALE.limit(1), times).first() is not None


def resend_stale(connection: sa.Connection, *, older_than_s: float, term: int | None) -> int:
    """Leave the messages of queued jobs again that nobody has claimed for a while; returns how many."""
    leadership.require_term(connection, term)
    hold_graph(connection, shared=True)
    at = now(connection)
    found = connection.execute(_STALE, {"before": at - older_than_s, "after": at + older_than_s})
    stale = sorted(found)  # in SQL it would lead SQLite to read all jobs by id
    put(connection, [(row.queue, row.id, row.attempt) for row in stale], at=at)
    for row in stale:
        # Only the time of the last message: the state and the fence stay.
        connection.execute(
            sa.update(jobs)
            .where(jobs.c.id == row.id, jobs.c.state == str(JobState.QUEUED), jobs.c.attempt == row.attempt)
            .values(queued_at=at)
        )
    return len(stale)
