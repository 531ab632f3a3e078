"""A guarded UPDATE and an event for each job: how every job changes its state. The functions with the names of the
table in :mod:`farm.states` live beside this module: in ``jobs``, ``admission``, ``claims``, ``attempts``, ``reaping``
and others; docs/states.md says which.

On PostgreSQL writers run side by side. One that moves several jobs, or decides about a job by the states of others,
holds the graph (:func:`hold_graph`) from before its first row lock until its end: without an order two of them could
wait for each other, or each miss what the other is about to write. SQLite has one writer at a time anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from farm.db import insert_all, recordset
from farm.errors import NotFound, StaleTransition
from farm.models import events, jobs
from farm.states import FINAL, NOTES, JobState, is_legal

_T = TypeVar("_T")
_GRAPH_LOCK = 7_200_101  # any number that no other advisory lock has
_AT_ONCE = 500  # ids in one statement; both databases limit how many parameters it may have

# Statements are made once where they are many a second: making one costs SQLAlchemy more than running it.
_UPDATE = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("the_job"), jobs.c.state == sa.bindparam("the_state"))
    .returning(jobs.c.attempt)
)
_FENCED_UPDATE = _UPDATE.where(jobs.c.attempt == sa.bindparam("the_attempt"))
_INSERT_EVENT = sa.insert(events)
_STATE = sa.select(jobs.c.state).where(jobs.c.id == sa.bindparam("the_job")).with_for_update()


def hold_graph(connection: sa.Connection, *, shared: bool = False) -> None:
    """Keep the relations between jobs as they are until the transaction ends.

    Args:
        connection: open transaction that holds no job's row yet.
        shared: others that are shared, too, may go on: for writers whose rows no other shared one wants, or that take
            them in the order of their ids.
    """
    if connection.dialect.name == "postgresql":
        function = sa.func.pg_advisory_xact_lock_shared if shared else sa.func.pg_advisory_xact_lock
        connection.execute(sa.select(function(_GRAPH_LOCK)))


def chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """The ids, keys or rows in pieces that fit into a statement."""
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]


def move(
    connection: sa.Connection,
    job_id: int,
    name: str,
    *,
    source: JobState,
    target: JobState,
    reason: str,
    at: float,
    attempt: int | None = None,
    values: Mapping[str, Any] | None = None,
) -> None:
    """Move a job along one transition and write its event.

    Args:
        connection: open transaction.
        job_id: the job.
        name: transition of :data:`farm.states.TRANSITIONS`.
        source: state that the caller believes it to be in.
        target: state that it gets.
        reason: one sentence for people.
        at: the database's time.
        attempt: fence that the caller holds; None when the transition needs none.
        values: further columns; values, not expressions.

    Raises:
        StaleTransition: the job is not in that state, or at another attempt: somebody else was first.
    """
    changed = _changed(name, source=source, target=target, reason=reason, at=at, values=values)
    guards = {"the_job": job_id, "the_state": str(source)}
    if attempt is None:
        found = connection.execute(_UPDATE, {**guards, **changed})
    else:
        found = connection.execute(_FENCED_UPDATE, {**guards, "the_attempt": attempt, **changed})
    moved = found.scalar_one_or_none()
    if moved is None:
        fence = "" if attempt is None else f" at attempt {attempt}"
        raise StaleTransition(f"Job j{job_id} is no longer {source}{fence}: {name} came too late.")
    event = _event(name, source=source, target=target, reason=reason, at=at)
    connection.execute(_INSERT_EVENT, {"job_id": job_id, "attempt": moved, **event})


def move_all(
    connection: sa.Connection,
    job_ids: Sequence[int],
    name: str,
    *,
    source: JobState,
    target: JobState,
    reason: str,
    at: float,
    values: Mapping[str, Any] | None = None,
) -> None:
    """Move several jobs along the same transition, as :func:`move` does one: for a caller that holds the graph.

    A sweep has tens of thousands of jobs, and while one statement after another ends them nobody else could write.

    Raises:
        StaleTransition: one of the jobs is not in that state.
    """
    changed = _changed(name, source=source, target=target, reason=reason, at=at, values=values)
    event = _event(name, source=source, target=target, reason=reason, at=at)
    for some in chunks(sorted(job_ids)):
        moved = connection.execute(
            sa.update(jobs)
            .where(jobs.c.id.in_(some), jobs.c.state == str(source))
            .values(**changed)
            .returning(jobs.c.id, jobs.c.attempt)
        ).all()
        if len(moved) != len(some):
            others = sorted(set(some) - {row.id for row in moved})
            raise StaleTransition(f"Job j{others[0]} is no longer {source}: {name} came too late.")
        rows = [{"job_id": row.id, "attempt": row.attempt, **event} for row in sorted(moved)]
        insert_all(connection, events, rows)


def move_each(
    connection: sa.Connection,
    rows: Sequence[Mapping[str, Any]],
    name: str,
    *,
    source: JobState,
    target: JobState,
    at: float,
    next_attempt: bool = False,
) -> dict[int, int]:
    """Move several jobs along one transition, each with values of its own, in one statement; attempts by job.

    A job that is not in the state any more, or at another attempt, is left alone and missing in what is returned:
    somebody else was first. The caller holds the graph, shared at least.

    Args:
        connection: open transaction.
        rows: for each job ``id``, ``reason``, ``attempt`` when it is fenced, and the columns that it gets; all rows
            with the same names.
        name: transition of :data:`farm.states.TRANSITIONS`.
        source, target: states before and after.
        at: the database's time.
        next_attempt: give each job the next number of an attempt.
    """
    if not rows:
        return {}
    if not is_legal(source, name, target):
        raise AssertionError(f"{source} --{name}--> {target} is not a transition of a job")
    statement = _update_each(connection.dialect.name, tuple(rows[0]), next_attempt=next_attempt)
    states = {"the_state": str(source), "state": str(target), "finished_at": at if target in FINAL else None}
    moved: dict[int, int] = {}
    for some in chunks(sorted(rows, key=lambda row: int(row["id"]))):
        given = {"rows": list(some), **states}
        moved.update((row[0], row[1]) for row in connection.execute(statement, given))
    fixed = {"at": at, "transition": name, "from_state": str(source), "to_state": str(target)}
    written = [
        {"job_id": row["id"], "attempt": moved[row["id"]], **fixed, "reason": row["reason"]}
        for row in rows
        if row["id"] in moved
    ]
    insert_all(connection, events, written)
    return moved


@functools.cache
def _update_each(dialect: str, names: tuple[str, ...], *, next_attempt: bool) -> sa.Update | Any:
    """The guarded UPDATE of :func:`move_each`, for rows with the given names."""
    given = recordset(dialect, jobs, names)
    guards = [jobs.c.id == given.c.id, jobs.c.state == sa.bindparam("the_state")]
    if "attempt" in names:
        guards.append(jobs.c.attempt == given.c.attempt)
    values: dict[str, Any] = {name: given.c[name] for name in names if name not in ("id", "attempt")}
    values |= {name: sa.bindparam(name, type_=jobs.c[name].type) for name in ("state", "finished_at")}
    if next_attempt:
        values["attempt"] = jobs.c.attempt + 1
    return sa.update(jobs).where(*guards).values(**values).returning(jobs.c.id, jobs.c.attempt)


def _changed(
    name: str, *, source: JobState, target: JobState, reason: str, at: float, values: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The columns that a transition sets."""
    if not is_legal(source, name, target):
        raise AssertionError(f"{source} --{name}--> {target} is not a transition of a job")
    return {"state": str(target), "reason": reason, "finished_at": at if target in FINAL else None, **(values or {})}


def _event(name: str, *, source: JobState, target: JobState, reason: str, at: float) -> dict[str, Any]:
    return {"at": at, "transition": name, "from_state": str(source), "to_state": str(target), "reason": reason}


def note(connection: sa.Connection, job_id: int, name: str, *, reason: str, at: float) -> None:
    """Write an event about a job whose state stays as it is.

    Args:
        connection: open transaction.
        job_id: the job.
        name: of :data:`farm.states.NOTES`.
        reason: one sentence for people.
        at: the database's time.
    """
    if name not in NOTES:
        raise AssertionError(f"{name} is no note about a job")
    row = connection.execute(sa.select(jobs.c.state, jobs.c.attempt).where(jobs.c.id == job_id).with_for_update()).one()
    state = JobState(row.state)
    event = _event(name, source=state, target=state, reason=reason, at=at)
    connection.execute(_INSERT_EVENT, {"job_id": job_id, "attempt": row.attempt, **event})


def state_of(connection: sa.Connection, job_id: int) -> JobState:
    """The state of a job; its row is locked until the transaction ends, where the database has such locks.

    Raises:
        NotFound: there is no such job.
    """
    found = connection.scalar(_STATE, {"the_job": job_id})
    if found is None:
        raise NotFound(f"There is no job j{job_id}. See the jobs with: farm list --jobs")
    return JobState(found)
