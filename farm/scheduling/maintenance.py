"""Duties of the leading scheduler beside placing jobs. One function per duty, one round each; each returns counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import sqlalchemy as sa

from farm.clockwatch import FAR_LEASES
from farm.db import Database
from farm.errors import StaleTransition, TermOver
from farm.lifecycle import attempts, expiry, outbox, reaping
from farm.scheduling import history

_LEARN_AT_ONCE = 1000


def reap(database: Database, *, lease_s: float, term: int | None) -> int:
    """Take attempts whose lease, of ``lease_s`` seconds, is over from their nodes."""
    with database.read() as connection:
        found = reaping.expired(connection, far_s=FAR_LEASES * lease_s)

    def lose(connection: sa.Connection, job_id: int, attempt: int) -> None:
        reaping.lose(connection, job_id, attempt, reason="Its node was not heard for a whole lease.", term=term)

    return _each(database, found, lose)


def end_overdue(database: Database, *, grace_s: float, term: int | None) -> int:
    """Take attempts whose time is over from nodes that should have ended them ``grace_s`` ago."""
    with database.read() as connection:
        found = reaping.overdue(connection, grace_s=grace_s)

    def overrun(connection: sa.Connection, job_id: int, attempt: int) -> None:
        reason = "Its time was over, and its node did not end it."
        reaping.overrun(connection, job_id, attempt, reason=reason, term=term)

    return _each(database, found, overrun)


def expire(database: Database, *, limit: int, term: int | None) -> int:
    """Fail jobs that waited too long or whose deadline has passed."""
    with database.read() as connection:
        if not expiry.any_late(connection):
            return 0
    with database.write() as connection:
        return expiry.expire(connection, limit=limit, term=term)


def give_back_stranded(database: Database, *, max_age_s: float, term: int | None) -> int:
    """Take queued jobs from queues that no live node listens to."""
    with database.read() as connection:
        found = reaping.stranded(connection, max_age_s=max_age_s)

    def give_back(connection: sa.Connection, job_id: int, attempt: int) -> None:
        attempts.give_back(connection, job_id, attempt, reason="Its node is not heard any more.", term=term)

    return _each(database, found, give_back)


def resend(database: Database, *, older_than_s: float, term: int | None) -> int:
    """Leave messages again that nobody has acted on."""
    with database.read() as connection:
        if not outbox.anything_stale(connection, older_than_s=older_than_s):
            return 0
    with database.write() as connection:
        return outbox.resend_stale(connection, older_than_s=older_than_s, term=term)


def learn(database: Database, *, half_life_s: float, term: int | None) -> int:
    """Learn running times, memory and use from attempts that have ended."""
    with database.read() as connection:
        if not history.anything_new(connection):
            return 0
    with database.write() as connection:
        return history.learn(connection, limit=_LEARN_AT_ONCE, half_life_s=half_life_s, term=term)


def forget(database: Database, *, num_keys: int, term: int | None) -> int:
    """Forget what the kinds of work took that nobody has done for longest, of more than ``num_keys``; returns how many.

    A tenth more is suffered, so that not every round has some to forget.
    """
    with database.read() as connection:
        if history.num_keys(connection) <= num_keys + num_keys // 10:
            return 0
    with database.write() as connection:
        return history.forget(connection, num_keys=num_keys, term=term)


def _each(database: Database, found: Iterable[tuple[int, int]], act: Callable[[sa.Connection, int, int], None]) -> int:
    """Act on each in a transaction of its own; whoever was faster is left alone.

    Raises:
        TermOver: another scheduler leads; the rest is its business.
    """
    count = 0
    for job_id, attempt in found:
        try:
            with database.write() as connection:
                act(connection, job_id, attempt)
        except TermOver:
            raise
        except StaleTransition:
            continue
        count += 1
    return count
