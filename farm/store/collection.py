"""Garbage collection: which artifacts may go, and how they go while jobs run.

Two steps, so that nothing is deleted that somebody has just begun to use. An artifact is *condemned* in the database
when nothing needs it and it has not been used for long, or when the store is over its budget. A hit or a claim that
uses it takes that back in its own transaction. What is still condemned after a while is *struck* from the books, with
the actions that led to it, and its bytes are deleted after that. An artifact that is published between the two is
newer than the sentence, and stays.

What is needed: inputs of jobs that have not ended, what is pinned, and what was used within the last hour.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import sqlalchemy as sa

from farm.db import Database, now
from farm.lifecycle import leadership
from farm.lifecycle.transitions import chunks, hold_graph
from farm.models import artifacts, attempts, edges, jobs, literal
from farm.settings import Settings
from farm.store import catalogue, disposal, stores
from farm.store.artifacts import Store
from farm.store.disposal import Holdings, Ledger, Leftover

RECENT_S = 3600.0  # a node may hold the artifact of an attempt whose end it cannot write yet
GRACE_S = 600.0  # between the two steps
ORPHAN_AFTER_S = 86_400.0  # bytes without a row may be those of an attempt that is about to end

_parents = jobs.alias()
_NEEDED = (
    sa.select(_parents.c.artifact)
    .select_from(jobs)
    .join(edges, edges.c.child_id == jobs.c.id)
    .join(_parents, _parents.c.id == edges.c.parent_id)
    .where(jobs.c.finished_at.is_(None), _parents.c.artifact.is_not(None))
    .distinct()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """An artifact as the books have it; ``used_at`` is when it was made if it was not used since."""

    digest: str
    stage: str
    num_bytes: int
    used_at: float
    pinned: bool
    condemned_at: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """How much is kept.

    Attributes:
        unused_for_s: what was not used for so long goes; None keeps it.
        budget_bytes: of what only the store holds; the longest unused go until the rest fits. None: any.
        logs_older_than_s: logs of attempts that go; None keeps them.
        grace_s: between condemning and deleting.
        recent_s: what was used within goes in no case.
        limit: artifacts that one round condemns and deletes at most.
    """

    unused_for_s: float | None = None
    budget_bytes: int | None = None
    logs_older_than_s: float | None = None
    grace_s: float = GRACE_S
    recent_s: float = RECENT_S
    limit: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where bytes lie.

    Attributes:
        store: the artifacts.
        scratch: scratch directories of this host's attempts.
        logs: logs of this host's attempts.
    """

    store: Store
    scratch: Path | None = None
    logs: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a round did, or would do.

    Attributes:
        num_artifacts, num_bytes: in the store before; bytes that only the store holds.
        condemned, condemned_bytes: chosen now, and what their deletion will free.
        deleted, deleted_bytes: chosen before and deleted now.
        orphans, orphan_bytes: artifacts that no row tells of.
        leftovers, leftover_bytes: what crashes left, and old damage.
        logs, log_bytes: logs of attempts.
    """

    num_artifacts: int = 0
    num_bytes: int = 0
    condemned: tuple[str, ...] = ()
    condemned_bytes: int = 0
    deleted: tuple[str, ...] = ()
    deleted_bytes: int = 0
    orphans: tuple[str, ...] = ()
    orphan_bytes: int = 0
    leftovers: int = 0
    leftover_bytes: int = 0
    logs: int = 0
    log_bytes: int = 0


def places(settings: Settings) -> Places:
    """Where the bytes of a farm lie, as this host sees them."""
    return Places(
        store=stores.open_store(stores.place(settings)), scratch=settings.home / "scratch", logs=settings.log_dir
    )


def present(connection: sa.Connection) -> list[Entry]:
    """The artifacts whose bytes are there, by the books."""
    rows = connection.execute(
        sa.select(
            *(artifacts.c[name] for name in ("digest", "stage", "num_bytes", "created_at", "used_at", "condemned_at")),
            artifacts.c.pinned.is_not(None).label("pinned"),
        )
        .where(artifacts.c.deleted_at.is_(None))
        .order_by(artifacts.c.digest)
    )
    return [
        Entry(
            digest=row.digest,
            stage=row.stage,
            num_bytes=row.num_bytes,
            used_at=max(row.created_at, row.used_at or 0.0),
            pinned=bool(row.pinned),
            condemned_at=row.condemned_at,
        )
        for row in rows
    ]


def needed(connection: sa.Connection) -> set[str]:
    """The inputs of jobs that have not ended."""
    return set(connection.scalars(_NEEDED))


def choose(
    entries: Sequence[Entry], *, held: Holdings, roots: Iterable[str], policy: Policy, at: float
) -> tuple[list[str], int]:
    """The artifacts to condemn, longest unused first, and the bytes that their deletion frees. Pure."""
    ledger = Ledger(held)
    kept = set(roots)
    for entry in entries:
        if entry.condemned_at is not None and entry.digest not in kept and not entry.pinned:
            ledger.take(entry.digest)
    free = [
        entry
        for entry in sorted(entries, key=lambda entry: (entry.used_at, entry.digest))
        if entry.condemned_at is None
        and not entry.pinned
        and entry.digest not in kept
        and entry.used_at <= at - policy.recent_s
    ]
    chosen, freed = [], 0
    for entry in free[: policy.limit]:
        unused = policy.unused_for_s is not None and entry.used_at <= at - policy.unused_for_s
        over = policy.budget_bytes is not None and ledger.num_bytes > policy.budget_bytes
        if unused or over:
            chosen.append(entry.digest)
            freed += ledger.take(entry.digest)
    return chosen, freed


def condemn(connection: sa.Connection, digests: Sequence[str], *, recent_s: float, term: int | None) -> None:
    """Choose artifacts for deletion, but those that were used or pinned since the caller looked.

    Raises:
        StaleTransition: the term is over.
    """
    leadership.require_term(connection, term)
    hold_graph(connection)
    at = now(connection)
    for some in chunks(sorted(digests)):
        connection.execute(
            sa.update(artifacts)
            .where(
                artifacts.c.digest.in_(some),
                artifacts.c.condemned_at.is_(None),
                artifacts.c.deleted_at.is_(None),
                artifacts.c.pinned.is_(None),
                sa.func.coalesce(artifacts.c.used_at, artifacts.c.created_at) <= at - recent_s,
            )
            .values(condemned_at=at)
        )


def strike(connection: sa.Connection, *, grace_s: float, limit: int | None, term: int | None) -> list[str]:
    """Take from the books what was condemned some time ago and is not needed: no action leads to it any more.

    The jobs that made it still say so. What is needed after all is condemned no longer.

    Raises:
        StaleTransition: the term is over.
    """
    leadership.require_term(connection, term)
    hold_graph(connection)  # nobody hits an action or wants an input meanwhile
    at = now(connection)
    due = connection.scalars(
        sa.select(artifacts.c.digest)
        .where(artifacts.c.condemned_at <= at - grace_s, artifacts.c.deleted_at.is_(None), artifacts.c.pinned.is_(None))
        .order_by(artifacts.c.condemned_at, artifacts.c.digest)
        .limit(limit)
    ).all()
    if not due:
        return []
    wanted = needed(connection)
    struck = [digest for digest in due if digest not in wanted]
    for some in chunks(sorted(set(due) & wanted)):
        connection.execute(sa.update(artifacts).where(artifacts.c.digest.in_(some)).values(condemned_at=None))
    catalogue.forget(connection, struck, at=at)
    return struck


def collect(
    database: Database, places: Places, *, policy: Policy, term: int | None = None, dry_run: bool = False
) -> Report:
    """Do a round, or tell what it would do.

    Raises:
        StorageFault: the store cannot be read or written.
        StaleTransition: the term is over.
    """
    store = places.store
    with store.faults("read"):
        held = disposal.holdings(store)
    with database.read() as connection:
        at = now(connection)
        entries = present(connection)
        chosen, freed = choose(entries, held=held, roots=needed(connection), policy=policy, at=at)
        known = {entry.digest for entry in entries} | _struck(connection)
        is_running = _running(connection)
    old = at - ORPHAN_AFTER_S
    orphans = [digest for digest in sorted(set(held) - known) if 0 < store.touched_at(digest) < old]
    found = disposal.leftovers(store, scratch=places.scratch, is_running=lambda *key: key in is_running)
    logs: list[Leftover] = []
    if policy.logs_older_than_s is not None and places.logs is not None:
        logs = disposal.old_logs(places.logs, older_than_s=policy.logs_older_than_s)
    if dry_run:
        deleted = _due(entries, policy=policy, at=at)
    else:
        with database.write() as connection:
            condemn(connection, chosen, recent_s=policy.recent_s, term=term)
        deleted = _delete(database, store, held=held, policy=policy, term=term)
        for digest in orphans:
            remove(database, store, digest, untouched_since=old)
        with store.faults("delete from"):
            disposal.delete([*found, *logs])
            store.sweep(untouched_since=old)
    return Report(
        num_artifacts=len(held),
        num_bytes=Ledger(held).num_bytes,
        condemned=tuple(chosen),
        condemned_bytes=freed,
        deleted=tuple(deleted),
        deleted_bytes=_freed(held, deleted),
        orphans=tuple(orphans),
        orphan_bytes=_freed(held, orphans),
        leftovers=len(found),
        leftover_bytes=sum(one.num_bytes for one in found),
        logs=len(logs),
        log_bytes=sum(one.num_bytes for one in logs),
    )


def _due(entries: Sequence[Entry], *, policy: Policy, at: float) -> list[str]:
    """What a round would delete, if nothing of it is needed."""
    return [
        entry.digest
        for entry in entries
        if entry.condemned_at is not None and entry.condemned_at <= at - policy.grace_s and not entry.pinned
    ]


def _struck(connection: sa.Connection) -> set[str]:
    return set(connection.scalars(sa.select(artifacts.c.digest).where(artifacts.c.deleted_at.is_not(None))))


def _delete(database: Database, store: Store, *, held: Holdings, policy: Policy, term: int | None) -> list[str]:
    """Strike what is due, then delete its bytes, and those of what was struck before a crash."""
    with database.write() as connection:
        strike(connection, grace_s=policy.grace_s, limit=policy.limit, term=term)
        old = now(connection) - policy.recent_s
        gone = _struck(connection)
    return [digest for digest in sorted(gone & set(held)) if remove(database, store, digest, untouched_since=old)]


def remove(database: Database, store: Store, digest: str, *, untouched_since: float) -> bool:
    """Delete the bytes of an artifact that the books do not have; whether they are gone."""
    return store.remove(digest, untouched_since=untouched_since, confirmed=lambda: _is_struck(database, digest))


def _is_struck(database: Database, digest: str) -> bool:
    """Whether the books have no artifact, or have it as deleted; an attempt may have written it meanwhile."""
    with database.read() as connection:
        found = connection.execute(sa.select(artifacts.c.deleted_at).where(artifacts.c.digest == digest)).one_or_none()
        return found is None or found.deleted_at is not None


def _freed(held: Holdings, digests: Iterable[str]) -> int:
    ledger = Ledger(held)
    return sum(ledger.take(digest) for digest in digests)


def _running(connection: sa.Connection) -> set[tuple[int, int]]:
    rows = connection.execute(
        sa.select(attempts.c.job_id, attempts.c.number).where(attempts.c.state == literal("running"))
    )
    return {(row.job_id, row.number) for row in rows}
