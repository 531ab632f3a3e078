"""What users do to jobs: submit, cancel, retry."""

from __future__ import annotations

import collections
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from farm.db import insert_all, now, wake_scheduler
from farm.errors import NotFound, Refused
from farm.lifecycle import following, holds, results, settling
from farm.lifecycle.transitions import chunks, hold_graph, move_all, state_of
from farm.models import KINDS, edges, events, jobs, point_jobs, points, submissions
from farm.plan import Plan
from farm.records import Limits
from farm.states import DONE, FINAL, JobState

NO_LIMITS = Limits()

_RETRIABLE = (JobState.FAILED, JobState.CANCELLED, JobState.BLOCKED)


def submit(
    connection: sa.Connection,
    plan: Plan,
    *,
    name: str,
    owner: str,
    request: Mapping[str, Any],
    priority: int = 0,
    kind: str = KINDS[-1],
    labels: Mapping[str, str] | None = None,
    token: str | None = None,
    limits: Limits = NO_LIMITS,
    anew: Collection[str] = (),
) -> int:
    """Write a plan; returns the submission's id. A token that was used before returns the submission it made.

    Args:
        connection: open transaction.
        plan: jobs and points.
        name: for people.
        owner: who wants it.
        request: what was asked, as JSON values.
        priority: higher is sooner.
        kind: class of urgency, one of :data:`farm.models.KINDS`.
        labels: for people.
        token: the client's, for submitting once.
        limits: of waiting, running and the whole.
        anew: stages that are done whatever is known, and whose results replace that.
    """
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
            kind=kind,
            labels=dict(labels or {}),
            request=dict(request),
            token=token,
            created_at=at,
            deadline_at=_deadline(limits, at=at),
        )
        .returning(submissions.c.id)
    ).scalar_one()
    shared = {
        "submission_id": submission_id,
        "owner": owner,
        "priority": priority,
        "kind": kind,
        "created_at": at,
        "wait_limit_s": limits.wait_limit_s,
        "run_limit_s": limits.run_limit_s,
        "deadline_at": _deadline(limits, at=at),
    }
    ids = _insert_jobs(connection, plan, shared=shared, anew=anew)
    _insert_points(connection, plan, submission_id=submission_id, ids=ids)
    wake_scheduler(connection)
    return submission_id


def _deadline(limits: Limits, *, at: float) -> float | None:
    return None if limits.deadline_s is None else at + limits.deadline_s


def _insert_jobs(
    connection: sa.Connection, plan: Plan, *, shared: Mapping[str, Any], anew: Collection[str]
) -> dict[str, int]:
    """Insert jobs, all with the ``shared`` values, edges and first events; returns the ids by plan key."""
    reserved = _reserve_ids(connection, jobs, number=len(plan.jobs))
    ids = {job.plan_key: job_id for job, job_id in zip(plan.jobs, reserved, strict=True)}
    rows = [
        {
            **shared,
            "id": ids[job.plan_key],
            "stage": str(job.stage),
            "label": job.label,
            "model": job.model,
            "spec": job.spec,
            "plan_key": job.plan_key,
            "state": str(JobState.WAITING),
            "reason": "waits for its inputs" if job.inputs else "waits for the scheduler",
            "remaining": len(job.inputs),
            "chain": job.chain,
            "num_cores": job.num_cores,
            "num_devices": job.num_devices,
            "exclusive": job.exclusive,
            "needs": job.needs,
            "skip_cache": job.stage in anew,
        }
        for job in plan.jobs
    ]
    insert_all(connection, jobs, rows)
    links = [
        {"child_id": ids[job.plan_key], "input": name, "parent_id": ids[parent]}
        for job in plan.jobs
        for name, parent in job.inputs.items()
    ]
    insert_all(connection, edges, links)
    at = shared["created_at"]
    first = {"attempt": 0, "at": at, "transition": "submit", "to_state": str(JobState.WAITING), "reason": "submitted"}
    insert_all(connection, events, [{"job_id": job_id, **first} for job_id in ids.values()])
    return ids


def _insert_points(connection: sa.Connection, plan: Plan, *, submission_id: int, ids: Mapping[str, int]) -> None:
    reserved = _reserve_ids(connection, points, number=len(plan.points))
    rows = [
        {"id": point_id, "submission_id": submission_id, "number": number, "axes": point.axes}
        for number, (point_id, point) in enumerate(zip(reserved, plan.points, strict=True))
    ]
    insert_all(connection, points, rows)
    links = [
        {"point_id": point_id, "job_id": ids[key]}
        for point_id, point in zip(reserved, plan.points, strict=True)
        for key in dict.fromkeys(point.plan_keys)
    ]
    insert_all(connection, point_jobs, links)


def _reserve_ids(connection: sa.Connection, table: sa.Table, *, number: int) -> list[int]:
    """Ids for new rows, ascending: inserting rows whose ids are known is several times faster than asking for them."""
    if connection.dialect.name == "sqlite":  # the only writer: nobody else takes one meanwhile
        last = connection.execute(sa.select(sa.func.coalesce(sa.func.max(table.c.id), 0))).scalar_one()
        return list(range(last + 1, last + 1 + number))
    sequence = sa.func.pg_get_serial_sequence(table.name, "id")
    each = sa.select(sa.func.nextval(sequence)).select_from(sa.func.generate_series(1, number))
    return list(connection.scalars(each))


def cancel(connection: sa.Connection, job_id: int, *, reason: str = "cancelled by a user") -> JobState:
    """Cancel a job; returns its state afterwards. A running one is asked to stop, and its node ends it.

    One whose result other jobs wait for works on for those, and is cancelled all the same.

    Raises:
        NotFound: no such job.
        Refused: the job has ended already.
    """
    hold_graph(connection)
    state = state_of(connection, job_id)
    (row,) = connection.execute(sa.select(jobs.c.unsubscribed_at, jobs.c.leader_id).where(jobs.c.id == job_id))
    if row.unsubscribed_at is not None:
        state = JobState.CANCELLED
    if state in FINAL:
        raise Refused(f"Job j{job_id} is {state} already: only a job that has not ended can be cancelled.")
    at = now(connection)
    if following.with_takers(connection, [job_id]):
        following.unsubscribe(connection, [job_id], source=state, reason=reason, at=at)
    elif state is JobState.RUNNING:
        _ask_to_stop(connection, [job_id], reason=reason)
        return state
    else:
        _cancel_at_once(connection, [job_id], source=state, reason=reason, at=at)
    settling.block_descendants(connection, job_id, because="was cancelled", at=at)
    return JobState.CANCELLED


def cancel_submission(connection: sa.Connection, submission_id: int) -> dict[str, int]:
    """Cancel every job of a submission that has not ended; counts of ``cancelled``, ``stopping`` and ``ended``.

    Raises:
        NotFound: no such submission.
    """
    hold_graph(connection)
    mine = jobs.c.submission_id == submission_id
    if connection.scalar(sa.select(submissions.c.id).where(submissions.c.id == submission_id)) is None:
        raise NotFound(f"There is no submission s{submission_id}. See them with: farm list")
    total = connection.execute(sa.select(sa.func.count()).where(mine)).scalar_one()
    by_state: dict[JobState, list[int]] = collections.defaultdict(list)
    rows = connection.execute(
        sa.select(jobs.c.id, jobs.c.state)
        .where(mine, jobs.c.finished_at.is_(None), jobs.c.unsubscribed_at.is_(None))
        .order_by(jobs.c.id)
        .with_for_update()
    )
    for row in rows:
        by_state[JobState(row.state)].append(row.id)
    at = now(connection)
    reason = "cancelled by a user"
    # Those that wait come first: what they follow may be this submission's own.
    waiting = by_state.pop(JobState.WAITING, [])
    _cancel_at_once(connection, waiting, source=JobState.WAITING, reason=reason, at=at)
    num_running = 0
    for state, found in by_state.items():
        wanted = following.with_takers(connection, found)
        following.unsubscribe(connection, sorted(wanted), source=state, reason=reason, at=at)
        alone = [job_id for job_id in found if job_id not in wanted]
        if state is JobState.RUNNING:
            _ask_to_stop(connection, alone, reason=reason)
            num_running = len(alone)
        else:
            _cancel_at_once(connection, alone, source=state, reason=reason, at=at)
    num_found = len(waiting) + sum(map(len, by_state.values()))
    return {"cancelled": num_found - num_running, "stopping": num_running, "ended": total - num_found}


def _cancel_at_once(
    connection: sa.Connection, job_ids: Sequence[int], *, source: JobState, reason: str, at: float
) -> None:
    """Cancel jobs that no process has."""
    assert source in (JobState.WAITING, JobState.READY, JobState.QUEUED), "a node has to end what runs"
    target, values = JobState.CANCELLED, {"leader_id": None}
    followed = holds.leaders(connection, job_ids) if source is JobState.WAITING else []
    move_all(connection, job_ids, "cancel", source=source, target=target, reason=reason, at=at, values=values)
    following.leave(connection, followed, at=at)
    following.release_all(connection, job_ids, at=at)


def _ask_to_stop(connection: sa.Connection, job_ids: Sequence[int], *, reason: str) -> None:
    """Leave the word that the nodes of running jobs look for, see :mod:`workers.steering`."""
    for some in chunks(job_ids):
        connection.execute(sa.update(jobs).where(jobs.c.id.in_(some)).values(cancel_requested=True, reason=reason))


def retry(connection: sa.Connection, job_id: int, *, skip_cache: bool = False) -> None:
    """Let a failed, cancelled or blocked job try again, with the inputs that failed it and what it blocked.

    A failure that was remembered for its action is forgotten. What works on for others is this submission's again.

    Args:
        connection: open transaction.
        job_id: the job.
        skip_cache: do the work of all these jobs anew, whatever is known by then.

    Raises:
        NotFound: no such job.
        Refused: the job has not ended, has its artifact, or is just being stopped.
    """
    hold_graph(connection)
    state = state_of(connection, job_id)
    (row,) = connection.execute(sa.select(jobs.c.unsubscribed_at).where(jobs.c.id == job_id))
    if state not in _RETRIABLE and row.unsubscribed_at is None:
        raise Refused(f"Job j{job_id} is {state}: only a failed, cancelled or blocked job can be tried again.")
    chosen = settling.reach(connection, [job_id], upwards=True, states=_RETRIABLE)
    blocked = settling.reach(connection, chosen, upwards=False, states=[JobState.BLOCKED]) - chosen
    again = chosen | _unblocked(connection, blocked, chosen=chosen)
    at = now(connection)
    results.forget_failures(connection, sorted(again))
    _reset(connection, sorted(again - _want_again(connection, again, at=at)), skip_cache=skip_cache, at=at)


def _want_again(connection: sa.Connection, job_ids: set[int], *, at: float) -> set[int]:
    """Those of some jobs that work on for others: they do so for their own submission, too, from now on.

    Raises:
        Refused: one of them is just being stopped.
    """
    by_state: dict[JobState, list[int]] = collections.defaultdict(list)
    for some in chunks(sorted(job_ids)):
        rows = connection.execute(
            sa.select(jobs.c.id, jobs.c.state, jobs.c.cancel_requested)
            .where(jobs.c.id.in_(some), jobs.c.unsubscribed_at.is_not(None), jobs.c.finished_at.is_(None))
            .order_by(jobs.c.id)
        )
        for row in rows:
            if row.cancel_requested:
                raise Refused(f"Job j{row.id} is just being stopped. Try it again in a moment.")
            by_state[JobState(row.state)].append(row.id)
    for state, found in by_state.items():
        following.subscribe_again(connection, found, source=state, at=at)
    return {job_id for found in by_state.values() for job_id in found}


def _unblocked(connection: sa.Connection, blocked: set[int], *, chosen: set[int]) -> set[int]:
    """Those of the blocked jobs whose inputs are all done or tried again; the others have one that still fails them."""
    parent = jobs.alias()
    unfinished = parent.c.state.in_([str(state) for state in _RETRIABLE]) | parent.c.unsubscribed_at.is_not(None)
    rows: list[Any] = []
    for some in chunks(sorted(blocked)):
        rows += connection.execute(
            sa.select(edges.c.child_id, edges.c.parent_id)
            .join(parent, parent.c.id == edges.c.parent_id)
            .where(edges.c.child_id.in_(some), unfinished)
        )
    tried = blocked | chosen
    while stuck := {row.child_id for row in rows if row.child_id in tried and row.parent_id not in tried}:
        tried -= stuck
    return tried - chosen


def _reset(connection: sa.Connection, job_ids: Sequence[int], *, skip_cache: bool, at: float) -> None:
    """Let jobs wait again as if they had just been submitted."""
    parent = jobs.alias()
    undone = (
        sa.select(sa.func.count())
        .select_from(edges.join(parent, parent.c.id == edges.c.parent_id))
        .where(edges.c.child_id == jobs.c.id, parent.c.state.not_in([str(state) for state in DONE]))
        .correlate(jobs)
        .scalar_subquery()
    )
    mine = submissions.c.id == jobs.c.submission_id
    values = {
        "priority": sa.select(submissions.c.priority).where(mine).correlate(jobs).scalar_subquery(),
        "kind": sa.select(submissions.c.kind).where(mine).correlate(jobs).scalar_subquery(),
        "held": holds.OF_SUBMISSION,
        "failures": 0,
        "remaining": undone,
        "action_key": None,
        "key_parts": None,
        "cancel_requested": False,
        "unsubscribed_at": None,
        **({"skip_cache": True} if skip_cache else {}),
        **dict.fromkeys(results.FAILURE),
        "not_before": 0.0,
        "node_id": None,
        # Who tries again what was too late wants it all the same.
        "deadline_at": sa.case((jobs.c.deadline_at > at, jobs.c.deadline_at), else_=None),
    }
    by_state: dict[JobState, list[int]] = collections.defaultdict(list)
    for some in chunks(job_ids):
        for row in connection.execute(sa.select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(some))):
            by_state[JobState(row.state)].append(row.id)
    reason = "a user wants it tried again"
    for state, found in by_state.items():
        target = JobState.WAITING
        move_all(connection, found, "retry", source=state, target=target, reason=reason, at=at, values=values)
