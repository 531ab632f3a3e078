"""What users do to jobs: submit, cancel, retry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from farm import settling
from farm.db import now
from farm.errors import NotFound, Refused, StaleTransition
from farm.models import actions, edges, events, jobs, point_jobs, points, submissions
from farm.plan import Plan
from farm.states import DONE, FINAL, JobState
from farm.transitions import move, state_of

_RETRIABLE = (JobState.FAILED, JobState.CANCELLED, JobState.BLOCKED)


def submit(
    connection: sa.Connection,
    plan: Plan,
    *,
    name: str,
    owner: str,
    request: Mapping[str, Any],
    priority: int = 0,
    labels: Mapping[str, str] | None = None,
    token: str | None = None,
) -> int:
    """Write a plan; returns the submission's id. A token that was used before returns the submission it made."""
    if token is not None:
        known = connection.scalar(sa.select(submissions.c.id).where(submissions.c.token == token))
        if known is not None:
            return int(known)
    at = now(connection)
    submission_id: int = connection.execute(
        sa.insert(submissions)
        .values(
            name=name,
            owner=owner,
            priority=priority,
            labels=dict(labels or {}),
            request=dict(request),
            token=token,
            created_at=at,
        )
        .returning(submissions.c.id)
    ).scalar_one()
    ids = _insert_jobs(connection, plan, submission_id=submission_id, priority=priority, at=at)
    _insert_points(connection, plan, submission_id=submission_id, ids=ids)
    return submission_id


def _insert_jobs(
    connection: sa.Connection, plan: Plan, *, submission_id: int, priority: int, at: float
) -> dict[str, int]:
    """Insert jobs, edges and first events; returns the ids by plan key."""
    rows = [
        {
            "submission_id": submission_id,
            "stage": str(job.stage),
            "label": job.label,
            "spec": job.spec,
            "plan_key": job.plan_key,
            "state": str(JobState.WAITING),
            "reason": "waits for its inputs" if job.inputs else "waits for the scheduler",
            "priority": priority,
            "remaining": len(job.inputs),
            "chain": job.chain,
            "num_cores": job.num_cores,
            "num_devices": job.num_devices,
            "created_at": at,
        }
        for job in plan.jobs
    ]
    inserted = connection.scalars(sa.insert(jobs).returning(jobs.c.id, sort_by_parameter_order=True), rows)
    ids = dict(zip((job.plan_key for job in plan.jobs), inserted, strict=True))
    links = [
        {"child_id": ids[job.plan_key], "input": name, "parent_id": ids[parent]}
        for job in plan.jobs
        for name, parent in job.inputs.items()
    ]
    if links:
        connection.execute(sa.insert(edges), links)
    first = {"attempt": 0, "at": at, "transition": "submit", "to_state": str(JobState.WAITING), "reason": "submitted"}
    connection.execute(sa.insert(events), [{"job_id": job_id, **first} for job_id in ids.values()])
    return ids


def _insert_points(connection: sa.Connection, plan: Plan, *, submission_id: int, ids: Mapping[str, int]) -> None:
    rows = [
        {"submission_id": submission_id, "number": number, "axes": point.axes}
        for number, point in enumerate(plan.points)
    ]
    inserted = connection.scalars(sa.insert(points).returning(points.c.id, sort_by_parameter_order=True), rows)
    links = [
        {"point_id": point_id, "job_id": ids[key]}
        for point_id, point in zip(inserted, plan.points, strict=True)
        for key in dict.fromkeys(point.plan_keys)
    ]
    connection.execute(sa.insert(point_jobs), links)


def cancel(connection: sa.Connection, job_id: int, *, reason: str = "cancelled by a user") -> JobState:
    """Cancel a job; returns its state afterwards. A running one is asked to stop, and its node ends it.

    Raises:
        NotFound: no such job.
        Refused: the job has ended already.
    """
    state = state_of(connection, job_id)
    if state in FINAL:
        raise Refused(f"Job j{job_id} is {state} already: only a job that has not ended can be cancelled.")
    at = now(connection)
    if state is JobState.RUNNING:
        asked = connection.execute(
            sa.update(jobs)
            .where(jobs.c.id == job_id, jobs.c.state == str(state))
            .values(cancel_requested=True, reason=reason)
        )
        if asked.rowcount != 1:
            raise StaleTransition(f"Job j{job_id} ended meanwhile.")
        return state
    move(
        connection,
        job_id,
        "cancel",
        source=state,
        target=JobState.CANCELLED,
        reason=reason,
        at=at,
        values={"leader_id": None},
    )
    settling.release_followers(connection, job_id, at=at)
    settling.block_descendants(connection, job_id, because="was cancelled", at=at)
    return JobState.CANCELLED


def cancel_submission(connection: sa.Connection, submission_id: int) -> dict[str, int]:
    """Cancel every job of a submission that has not ended; counts of ``cancelled``, ``stopping`` and ``ended``.

    Raises:
        NotFound: no such submission.
    """
    if connection.scalar(sa.select(submissions.c.id).where(submissions.c.id == submission_id)) is None:
        raise NotFound(f"There is no submission s{submission_id}. See them with: farm list")
    # Children before parents, so that they are cancelled and not blocked.
    rows = connection.execute(
        sa.select(jobs.c.id, jobs.c.state).where(jobs.c.submission_id == submission_id).order_by(jobs.c.id.desc())
    ).all()
    counts = {"cancelled": 0, "stopping": 0, "ended": 0}
    for row in rows:
        if JobState(row.state) in FINAL:
            counts["ended"] += 1
            continue
        state = cancel(connection, row.id)
        counts["stopping" if state is JobState.RUNNING else "cancelled"] += 1
    return counts


def retry(connection: sa.Connection, job_id: int) -> None:
    """Let a failed, cancelled or blocked job try again, with the inputs that failed it and what it blocked.

    A failure that was remembered for its action is forgotten.

    Raises:
        NotFound: no such job.
        Refused: the job has not ended, or has its artifact.
    """
    state = state_of(connection, job_id)
    if state not in _RETRIABLE:
        raise Refused(f"Job j{job_id} is {state}: only a failed, cancelled or blocked job can be tried again.")
    at = now(connection)
    chosen = _reach(connection, [job_id], upwards=True)
    blocked = _reach(connection, chosen, upwards=False, only=(JobState.BLOCKED,)) - chosen
    for one in sorted(chosen | _unblocked(connection, blocked, chosen=chosen)):
        _reset(connection, one, at=at)


def _reach(
    connection: sa.Connection,
    start: Iterable[int],
    *,
    upwards: bool,
    only: tuple[JobState, ...] = _RETRIABLE,
) -> set[int]:
    """The jobs reached along edges through jobs in the given states, with the start."""
    here, there = (edges.c.child_id, edges.c.parent_id) if upwards else (edges.c.parent_id, edges.c.child_id)
    states = [str(state) for state in only]
    found = set(start)
    border = set(found)
    while border:
        beyond = connection.scalars(
            sa.select(jobs.c.id).join(edges, there == jobs.c.id).where(here.in_(border), jobs.c.state.in_(states))
        )
        border = set(beyond) - found
        found |= border
    return found


def _unblocked(connection: sa.Connection, blocked: set[int], *, chosen: set[int]) -> set[int]:
    """Those of the blocked jobs whose inputs are all done or tried again; the others have one that still fails them."""
    parent = jobs.alias()
    rows = connection.execute(
        sa.select(edges.c.child_id, edges.c.parent_id)
        .join(parent, parent.c.id == edges.c.parent_id)
        .where(edges.c.child_id.in_(blocked), parent.c.state.in_([str(state) for state in _RETRIABLE]))
    ).all()
    found = set(blocked)
    while stuck := {row.child_id for row in rows if row.child_id in found and row.parent_id not in found | chosen}:
        found -= stuck
    return found


def _reset(connection: sa.Connection, job_id: int, *, at: float) -> None:
    row = connection.execute(sa.select(jobs.c.state, jobs.c.action_key).where(jobs.c.id == job_id)).one()
    if row.action_key is not None:
        connection.execute(
            sa.delete(actions).where(actions.c.action_key == row.action_key, actions.c.failure_class.is_not(None))
        )
    parent = jobs.alias()
    undone = connection.scalar(
        sa.select(sa.func.count())
        .select_from(edges.join(parent, parent.c.id == edges.c.parent_id))
        .where(edges.c.child_id == job_id, parent.c.state.not_in([str(state) for state in DONE]))
    )
    move(
        connection,
        job_id,
        "retry",
        source=JobState(row.state),
        target=JobState.WAITING,
        reason="a user wants it tried again",
        at=at,
        values={
            "failures": 0,
            "remaining": undone,
            "action_key": None,
            "key_parts": None,
            "cancel_requested": False,
            "failure_class": None,
            "failure_message": None,
            "not_before": 0.0,
            "node_id": None,
        },
    )
