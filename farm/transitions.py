"""One guarded UPDATE and one event: how every job changes its state. The functions with the names of the table in
:mod:`farm.states` live in :mod:`farm.jobs`, :mod:`farm.admission`, :mod:`farm.attempts` and :mod:`farm.reaping`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from farm.errors import NotFound, StaleTransition
from farm.models import events, jobs
from farm.states import FINAL, JobState, is_legal


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
        values: further columns.

    Raises:
        StaleTransition: the job is not in that state, or at another attempt: somebody else was first.
    """
    if not is_legal(source, name, target):
        raise AssertionError(f"{source} --{name}--> {target} is not a transition of a job")
    guards = [jobs.c.id == job_id, jobs.c.state == str(source)]
    if attempt is not None:
        guards.append(jobs.c.attempt == attempt)
    changed = {"state": str(target), "reason": reason, "finished_at": at if target in FINAL else None, **(values or {})}
    moved = connection.execute(
        sa.update(jobs).where(*guards).values(**changed).returning(jobs.c.attempt)
    ).scalar_one_or_none()
    if moved is None:
        fence = "" if attempt is None else f" at attempt {attempt}"
        raise StaleTransition(f"Job j{job_id} is no longer {source}{fence}: {name} came too late.")
    connection.execute(
        sa.insert(events).values(
            job_id=job_id,
            attempt=moved,
            at=at,
            transition=name,
            from_state=str(source),
            to_state=str(target),
            reason=reason,
        )
    )


def state_of(connection: sa.Connection, job_id: int) -> JobState:
    """The state of a job; its row is locked until the transaction ends, where the database has such locks.

    Raises:
        NotFound: there is no such job.
    """
    found = connection.scalar(sa.select(jobs.c.state).where(jobs.c.id == job_id).with_for_update())
    if found is None:
        raise NotFound(f"There is no job j{job_id}. See the jobs with: farm list --jobs")
    return JobState(found)
