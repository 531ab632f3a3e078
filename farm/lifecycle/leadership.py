"""Which scheduler leads. A term is a fence: it grows with each change, and every write of a scheduler carries it."""

from __future__ import annotations

import sqlalchemy as sa

from farm.clockwatch import FAR_LEASES
from farm.db import now
from farm.errors import TermOver
from farm.models import leader


def acquire(connection: sa.Connection, *, holder: str, lease_s: float) -> int | None:
    """Become the leader if there is none, or if the last one's lease is over; returns the new term, or None."""
    at = now(connection)
    # A lease that ends far ahead was taken before the clock was set back: its holder renews it, or has ended.
    over = sa.or_(leader.c.lease_until < at, leader.c.lease_until > at + FAR_LEASES * lease_s)
    taken = connection.execute(
        sa.update(leader)
        .where(leader.c.id == 1, over)
        .values(holder=holder, term=leader.c.term + 1, lease_until=at + lease_s)
        .returning(leader.c.term)
    ).scalar_one_or_none()
    if taken is not None:
        return int(taken)
    if connection.scalar(sa.select(leader.c.id)) is not None:
        return None
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(leader).values(id=1, holder=holder, term=1, lease_until=at + lease_s))
    except sa.exc.IntegrityError:
        return None
    return 1


def renew(connection: sa.Connection, *, holder: str, term: int, lease_s: float) -> bool:
    """Extend the lease; False when another has taken over."""
    at = now(connection)
    renewed = connection.execute(
        sa.update(leader)
        .where(leader.c.id == 1, leader.c.holder == holder, leader.c.term == term)
        .values(lease_until=at + lease_s)
    )
    return renewed.rowcount == 1


def resign(connection: sa.Connection, *, holder: str, term: int) -> None:
    """End the lease now, so that another need not wait for it."""
    connection.execute(
        sa.update(leader)
        .where(leader.c.id == 1, leader.c.holder == holder, leader.c.term == term)
        .values(lease_until=0.0)
    )


def require_term(connection: sa.Connection, term: int | None) -> None:
    """Raise :class:`TermOver` unless the term is the current one; the leader's row is locked meanwhile.

    ``None`` is for a farm without a leader, as in tests of single transitions.
    """
    if term is None:
        return
    current = connection.scalar(sa.select(leader.c.term).where(leader.c.id == 1).with_for_update(read=True))
    if current != term:
        raise TermOver(f"Term {term} is over, the leader's term is {current}. This scheduler stops leading.")
