"""Whether jobs, attempts, leases, counts and events agree with each other."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

from farm.db import Database, now
from farm.errors import StaleTransition
from farm.fsck._findings import Finding
from farm.lifecycle import leases
from farm.lifecycle.transitions import hold_graph, move
from farm.models import attempts, core_leases, edges, events, host_leases, jobs, literal
from farm.states import DONE, JobState

_parents = jobs.alias()
_MISSING = (
    sa.select(sa.func.count())
    .select_from(edges)
    .join(_parents, _parents.c.id == edges.c.parent_id)
    .where(edges.c.child_id == jobs.c.id, _parents.c.state.not_in([str(state) for state in DONE]))
    .correlate(jobs)
    .scalar_subquery()
)
_THE_ATTEMPT = sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.number == jobs.c.attempt)


def _counts(database: Database) -> Iterator[Finding]:
    """Jobs that wait for fewer or more inputs than are missing."""
    query = sa.select(jobs.c.id, jobs.c.remaining, _MISSING.label("missing")).where(
        jobs.c.finished_at.is_(None), jobs.c.remaining != _MISSING
    )
    for row in _rows(database, query.order_by(jobs.c.id)):
        yield Finding(
            kind="count",
            subject=f"j{row.id}",
            words=f"j{row.id} waits for {row.remaining} inputs, and {row.missing} are missing",
            repair=functools.partial(_recount, database, row.id),
        )


def _recount(database: Database, job_id: int) -> bool:
    with database.write() as connection:
        hold_graph(connection)
        changed = connection.execute(
            sa.update(jobs).where(jobs.c.id == job_id, jobs.c.remaining != _MISSING).values(remaining=_MISSING)
        )
        return changed.rowcount == 1


def _stuck_jobs(database: Database) -> Iterator[Finding]:
    """Jobs that run by their own row, and have no attempt that does."""
    query = (
        sa.select(jobs.c.id, jobs.c.attempt)
        .outerjoin(attempts, sa.and_(_THE_ATTEMPT, attempts.c.state == literal("running")))
        .where(jobs.c.state == literal(JobState.RUNNING), attempts.c.job_id.is_(None))
    )
    for row in _rows(database, query.order_by(jobs.c.id)):
        yield Finding(
            kind="stuck-job",
            subject=f"j{row.id}",
            words=f"j{row.id} is running, and its attempt {row.attempt} is not",
            repair=functools.partial(_place_again, database, row.id, row.attempt),
        )


def _place_again(database: Database, job_id: int, attempt: int) -> bool:
    with contextlib.suppress(StaleTransition), database.write() as connection:
        hold_graph(connection)
        running = sa.select(attempts.c.job_id).where(
            attempts.c.job_id == job_id, attempts.c.number == attempt, attempts.c.state == literal("running")
        )
        if connection.execute(running).first() is not None:
            return False
        move(
            connection,
            job_id,
            "lose",
            source=JobState.RUNNING,
            target=JobState.READY,
            reason="it had no attempt that runs; put right by farm fsck",
            at=now(connection),
            attempt=attempt,
            values={"node_id": None},
        )
        return True
    return False


def _stray_attempts(database: Database) -> Iterator[Finding]:
    """Attempts that run by their own row, and whose job does not."""
    query = (
        sa.select(attempts.c.job_id, attempts.c.number, jobs.c.state, jobs.c.attempt)
        .join(jobs, jobs.c.id == attempts.c.job_id)
        .where(
            attempts.c.state == literal("running"),
            sa.or_(jobs.c.state != str(JobState.RUNNING), jobs.c.attempt != attempts.c.number),
        )
    )
    for row in _rows(database, query.order_by(attempts.c.job_id, attempts.c.number)):
        yield Finding(
            kind="stray-attempt",
            subject=f"j{row.job_id}",
            words=f"attempt {row.number} of j{row.job_id} is running, and the job is {row.state} at {row.attempt}",
            repair=functools.partial(_end_stray, database, row.job_id, row.number),
        )


def _end_stray(database: Database, job_id: int, number: int) -> bool:
    ours = sa.select(jobs.c.id).where(
        jobs.c.id == job_id, jobs.c.state == str(JobState.RUNNING), jobs.c.attempt == number
    )
    with database.write() as connection:
        hold_graph(connection)
        at = now(connection)
        ended = connection.execute(
            sa.update(attempts)
            .where(
                attempts.c.job_id == job_id,
                attempts.c.number == number,
                attempts.c.state == literal("running"),
                ~sa.exists(ours),
            )
            .values(state="lost", finished_at=at, message="its job did not know it; put right by farm fsck")
        )
        if ended.rowcount == 1:
            leases.drain(connection, job_id, attempt=number, at=at)
        return ended.rowcount == 1


def _stray_slots(database: Database) -> Iterator[Finding]:
    """Host slots that attempts hold which have ended."""
    query = (
        sa.select(host_leases.c.job_id, host_leases.c.attempt, attempts.c.state)
        .join(attempts, _of(host_leases))
        .where(attempts.c.state != "running")
    )
    for row in _rows(database, query.order_by(host_leases.c.job_id).distinct()):
        yield _lease(database, row, what="a slot of a host")


def _stray_cores(database: Database) -> Iterator[Finding]:
    """Cores, and with them the memory of runs, that attempts hold which have ended; those of a lost one may drain."""
    query = (
        sa.select(core_leases.c.job_id, core_leases.c.attempt, attempts.c.state)
        .join(attempts, _of(core_leases))
        .where(
            attempts.c.state != "running",
            sa.or_(attempts.c.state != "lost", core_leases.c.state != "draining"),
        )
    )
    for row in _rows(database, query.order_by(core_leases.c.job_id).distinct()):
        yield _lease(database, row, what="cores")


def _lease(database: Database, row: Any, *, what: str) -> Finding:
    return Finding(
        kind="lease",
        subject=f"j{row.job_id}",
        words=f"attempt {row.attempt} of j{row.job_id} holds {what}, and is {row.state}",
        repair=functools.partial(_release, database, row.job_id, row.attempt),
    )


def _of(table: sa.Table) -> sa.ColumnElement[bool]:
    return sa.and_(attempts.c.job_id == table.c.job_id, attempts.c.number == table.c.attempt)


def _release(database: Database, job_id: int, number: int) -> bool:
    """Give back what an attempt holds that has ended; the cores of a lost one drain until its host confirms."""
    with database.write() as connection:
        at = now(connection)
        state = connection.scalar(
            sa.select(attempts.c.state)
            .where(attempts.c.job_id == job_id, attempts.c.number == number)
            .with_for_update()
        )
        if state == "running":
            return False
        if state == "lost":
            leases.drain(connection, job_id, attempt=number, at=at)
        else:
            leases.release(connection, job_id, attempt=number)
        return True


def _overdue(database: Database) -> Iterator[Finding]:
    """Running attempts whose lease is over. The scheduler takes them from their node, if there is one."""
    with database.read() as connection:
        at = now(connection)
    query = sa.select(attempts.c.job_id, attempts.c.number, attempts.c.lease_until).where(
        attempts.c.state == literal("running"), attempts.c.lease_until < at - _PATIENCE_S
    )
    for row in _rows(database, query.order_by(attempts.c.job_id)):
        yield Finding(
            kind="overdue",
            subject=f"j{row.job_id}",
            words=(
                f"the lease of attempt {row.number} of j{row.job_id} ended {round(at - row.lease_until)} s ago; a "
                "scheduler would have taken it from its node (farm up)"
            ),
        )


_PATIENCE_S = 30.0  # for a scheduler that takes over, and then has many to look at


def _silent_changes(database: Database) -> Iterator[Finding]:
    """Jobs whose last event does not say what they are. What happened cannot be known any more."""
    last = sa.select(sa.func.max(events.c.id).label("id")).group_by(events.c.job_id).subquery()
    told = sa.select(events.c.job_id, events.c.to_state).join(last, last.c.id == events.c.id).subquery()
    query = (
        sa.select(jobs.c.id, jobs.c.state, told.c.to_state)
        .outerjoin(told, told.c.job_id == jobs.c.id)
        .where(sa.or_(told.c.to_state.is_(None), told.c.to_state != jobs.c.state))
    )
    for row in _rows(database, query.order_by(jobs.c.id)):
        said = f"says {row.to_state}" if row.to_state else "is missing"
        yield Finding(kind="event", subject=f"j{row.id}", words=f"j{row.id} is {row.state}, its last event {said}")


def _rows(database: Database, query: sa.Select[Any]) -> list[Any]:
    with database.read() as connection:
        return list(connection.execute(query).all())


CHECKS: tuple[Callable[[Database], Iterator[Finding]], ...] = (
    _counts,
    _stray_attempts,
    _stuck_jobs,
    _stray_slots,
    _stray_cores,
    _overdue,
    _silent_changes,
)
