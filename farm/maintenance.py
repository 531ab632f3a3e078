"""Duties of the leading scheduler beside placing jobs. One function per duty, one round each; each returns counts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import sqlalchemy as sa

from farm import attempts, leadership, outbox, reaping
from farm.db import Database
from farm.errors import StaleTransition


def reap(database: Database, *, term: int | None) -> int:
    """Take attempts whose lease is over from their nodes."""
    with database.read() as connection:
        found = reaping.expired(connection)

    def lose(connection: sa.Connection, job_id: int, attempt: int) -> None:
        reaping.lose(connection, job_id, attempt, reason="Its node was not heard for a whole lease.", term=term)

    return _each(database, found, lose)


def give_back_stranded(database: Database, *, max_age_s: float, term: int | None) -> int:
    """Take queued jobs from queues that no live node listens to."""
    with database.read() as connection:
        found = reaping.stranded(connection, max_age_s=max_age_s)

    def give_back(connection: sa.Connection, job_id: int, attempt: int) -> None:
        leadership.require_term(connection, term)
        attempts.give_back(connection, job_id, attempt, reason="Its node is not heard any more.")

    return _each(database, found, give_back)


def resend(database: Database, *, older_than_s: float, term: int | None) -> int:
    """Leave messages again that nobody has acted on."""
    with database.write() as connection:
        return outbox.resend_stale(connection, older_than_s=older_than_s, term=term)


def _each(database: Database, found: Iterable[tuple[int, int]], act: Callable[[sa.Connection, int, int], None]) -> int:
    """Act on each in a transaction of its own; whoever was faster is left alone."""
    count = 0
    for job_id, attempt in found:
        with contextlib.suppress(StaleTransition), database.write() as connection:
            act(connection, job_id, attempt)
            count += 1
    return count
