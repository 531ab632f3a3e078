"""The read side: submissions, points, jobs, attempts and events as frozen values. Writes nothing.

Lists are paged by key: ``before`` is the smallest id of the page before, so that a page costs the same however deep
it lies and nothing is skipped while rows are added.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from farm.errors import NotFound
from farm.lifecycle import following
from farm.models import attempts, devices, edges, events, hosts, jobs, nodes, submissions
from farm.states import FINAL, JobState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """A submission and how far it is.

    Attributes:
        counts: jobs by state; states without a job are absent.
        state: :func:`overall` of the counts.
        finished_at: when its last job ended; None while one has not.
        paused_at, paused_by: since when nothing of it is placed, and who wants that; None when it is not paused.
    """

    id: int
    name: str
    owner: str
    kind: str
    priority: int
    labels: dict[str, str]
    request: dict[str, Any]
    created_at: float
    deadline_at: float | None
    counts: dict[JobState, int]
    state: str
    finished_at: float | None
    paused_at: float | None = None
    paused_by: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A job as its submission sees it: as its row says, but cancelled when it works on for others only.

    Attributes:
        held: it is not placed, since its submission is paused.
        kind: class of urgency.
        needs: what its place must be; None when any will do.
        exclusive: nobody else may be on its devices.
        ram_bytes: of its host, as predicted; 0 when nobody knows.
        expected_s, reserved_s: predicted running time, and what reservations are made with; None before it is ready.
        forecast_at: when a ready job was last expected to start.
        works_for_others: its user has cancelled it, and it goes on for the jobs that follow it.
        skip_cache: its work is done anew, whatever is known.
        done_by: whose work its artifact is.
        failure_line: the line of the log that matters.
    """

    id: int
    submission_id: int
    stage: str
    kind: str
    label: str
    spec: dict[str, Any]
    action_key: str | None
    leader_id: int | None
    state: JobState
    reason: str
    priority: int
    remaining: int
    num_cores: int
    num_devices: int
    exclusive: bool
    needs: dict[str, Any] | None
    ram_bytes: int
    expected_s: float | None
    reserved_s: float | None
    forecast_at: float | None
    attempt: int
    failures: int
    cancel_requested: bool
    not_before: float
    wait_limit_s: float | None
    run_limit_s: float | None
    deadline_at: float | None
    artifact: str | None
    failure_class: str | None
    failure_message: str | None
    failure_line: str | None
    failure_advice: str | None
    created_at: float
    ready_at: float | None
    queued_at: float | None
    finished_at: float | None
    held: bool = False
    works_for_others: bool = False
    skip_cache: bool = False
    done_by: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try at a job.

    Attributes:
        host: where it ran.
        device: the device of the node; None on a host's node.
        log_path: relative to the log directory.
    """

    job_id: int
    number: int
    state: str
    host: str
    device: str | None
    started_at: float
    finished_at: float | None
    run_until: float | None
    failure_class: str | None
    message: str | None
    progress: str | None
    fraction: float | None
    exit_code: int | None
    cpu_s: float | None
    peak_rss_bytes: int | None
    log_path: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """One transition of a job."""

    id: int
    job_id: int
    attempt: int
    at: float
    transition: str
    from_state: str | None
    to_state: str
    reason: str


_SEEN = {
    "state": following.SEEN_STATE.label("state"),
    "finished_at": following.SEEN_FINISHED_AT.label("finished_at"),
    "works_for_others": following.WORKS_FOR_OTHERS.label("works_for_others"),
}
JOB_COLUMNS = tuple(
    _SEEN[field.name] if field.name in _SEEN else jobs.c[field.name] for field in dataclasses.fields(Job)
)
_SUBMISSION_COLUMNS = (
    *("id", "name", "owner", "kind", "priority", "labels", "request", "created_at"),
    *("paused_at", "paused_by", "deadline_at"),
)
_TALLY = sa.select(
    jobs.c.submission_id, sa.func.max(following.SEEN_FINISHED_AT), following.SEEN_STATE, sa.func.count()
).group_by(jobs.c.submission_id, following.SEEN_STATE)
_DEVICE_NAME = devices.c.sku + sa.literal("/") + sa.cast(devices.c.qid, sa.Text)


def overall(counts: Mapping[JobState, int]) -> str:
    """One word for many jobs: the worst end of finished ones, else the most active state of the rest."""
    if all(state in FINAL for state in counts):
        if counts.get(JobState.FAILED) or counts.get(JobState.BLOCKED):
            return "failed"
        return "cancelled" if counts.get(JobState.CANCELLED) else "succeeded"
    active = (JobState.RUNNING, JobState.QUEUED, JobState.READY, JobState.WAITING)
    return str(next(state for state in active if counts.get(state)))


def submission_list(
    connection: sa.Connection, *, limit: int = 20, before: int | None = None, owner: str | None = None
) -> list[Submission]:
    """Submissions, newest first."""
    query = sa.select(submissions).order_by(submissions.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(submissions.c.id < before)
    if owner is not None:
        query = query.where(submissions.c.owner == owner)
    return _submissions(connection, query)


def submission(connection: sa.Connection, submission_id: int) -> Submission:
    """A submission.

    Raises:
        NotFound: there is none of this id.
    """
    found = _submissions(connection, sa.select(submissions).where(submissions.c.id == submission_id))
    if not found:
        raise NotFound(f"There is no submission s{submission_id}. `farm list` shows those that exist.")
    return found[0]


def _submissions(connection: sa.Connection, query: sa.Select[Any]) -> list[Submission]:
    rows = connection.execute(query).mappings().all()
    counts: dict[int, dict[JobState, int]] = collections.defaultdict(dict)
    ends: dict[int, float] = {}
    # One look at all jobs of a page: of a large submission that is what a list costs.
    tally = _TALLY.where(jobs.c.submission_id.in_([row["id"] for row in rows]))
    for submission_id, end, state, number in connection.execute(tally):
        counts[submission_id][JobState(state)] = number
        ends[submission_id] = max(ends.get(submission_id, 0.0), end or 0.0)
    return [
        Submission(
            **{name: row[name] for name in _SUBMISSION_COLUMNS},
            counts=counts[row["id"]],
            state=overall(counts[row["id"]]),
            finished_at=ends[row["id"]] if all(state in FINAL for state in counts[row["id"]]) else None,
        )
        for row in rows
    ]


def job_list(
    connection: sa.Connection,
    *,
    submission_id: int | None = None,
    states: Sequence[str] = (),
    stage: str | None = None,
    limit: int | None = 50,
    before: int | None = None,
) -> list[Job]:
    """Jobs, newest first; all of them when ``limit`` is None."""
    query = sa.select(*JOB_COLUMNS).order_by(jobs.c.id.desc()).limit(limit)
    if submission_id is not None:
        query = query.where(jobs.c.submission_id == submission_id)
    if states:
        query = query.where(following.SEEN_STATE.in_(states))
    if stage is not None:
        query = query.where(jobs.c.stage == stage)
    if before is not None:
        query = query.where(jobs.c.id < before)
    return [job_of(row) for row in connection.execute(query).mappings()]


def job(connection: sa.Connection, job_id: int) -> Job:
    """A job.

    Raises:
        NotFound: there is none of this id.
    """
    row = connection.execute(sa.select(*JOB_COLUMNS).where(jobs.c.id == job_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no job j{job_id}. `farm list --jobs` shows those that exist.")
    return job_of(row)


def job_of(row: sa.RowMapping) -> Job:
    fields = {field.name: row[field.name] for field in dataclasses.fields(Job)}
    flags = {name: bool(fields[name]) for name in ("held", "works_for_others")}
    return Job(**{**fields, **flags, "state": JobState(fields["state"])})


def exists(connection: sa.Connection, *, submission_id: int | None = None, job_id: int | None = None) -> bool:
    """Whether there is such a submission, or such a job."""
    table, wanted = (submissions, submission_id) if submission_id is not None else (jobs, job_id)
    return connection.execute(sa.select(table.c.id).where(table.c.id == wanted)).first() is not None


def inputs(connection: sa.Connection, job_id: int) -> dict[str, Job]:
    """The jobs that a job reads from, by input name."""
    query = (
        sa.select(edges.c.input, *JOB_COLUMNS)
        .join(jobs, jobs.c.id == edges.c.parent_id)
        .where(edges.c.child_id == job_id)
        .order_by(edges.c.input)
    )
    return {row["input"]: job_of(row) for row in connection.execute(query).mappings()}


def attempt_list(connection: sa.Connection, job_id: int) -> list[Attempt]:
    """The attempts of a job, oldest first."""
    query = _attempts().where(attempts.c.job_id == job_id).order_by(attempts.c.number)
    return [Attempt(**row) for row in connection.execute(query).mappings()]


def running(connection: sa.Connection, submission_id: int) -> list[Attempt]:
    """The running attempts of a submission's jobs, by job."""
    query = (
        _attempts()
        .join(jobs, jobs.c.id == attempts.c.job_id)
        .where(jobs.c.submission_id == submission_id, attempts.c.state == "running", jobs.c.unsubscribed_at.is_(None))
        .order_by(attempts.c.job_id)
    )
    return [Attempt(**row) for row in connection.execute(query).mappings()]


def _attempts() -> sa.Select[Any]:
    columns = [attempts.c[field.name] for field in dataclasses.fields(Attempt) if field.name not in ("host", "device")]
    return (
        sa.select(*columns, hosts.c.name.label("host"), _DEVICE_NAME.label("device"))
        .join(nodes, nodes.c.id == attempts.c.node_id)
        .join(hosts, hosts.c.id == nodes.c.host_id)
        .outerjoin(devices, devices.c.id == nodes.c.device_id)
    )


def event_list(
    connection: sa.Connection, *, job_id: int | None = None, submission_id: int | None = None, after: int = 0
) -> list[Event]:
    """What happened to a job, or to all jobs of a submission, oldest first, since the event ``after``."""
    query = sa.select(*(events.c[field.name] for field in dataclasses.fields(Event))).order_by(events.c.id)
    query = query.where(events.c.id > after)
    if job_id is not None:
        query = query.where(events.c.job_id == job_id)
    if submission_id is not None:
        query = query.join(jobs, jobs.c.id == events.c.job_id).where(jobs.c.submission_id == submission_id)
    return [Event(**row) for row in connection.execute(query).mappings()]


def first_event(connection: sa.Connection, submission_id: int) -> int:
    """The id of the first event of a submission: nothing of it is older."""
    first_job = sa.select(sa.func.min(jobs.c.id)).where(jobs.c.submission_id == submission_id).scalar_subquery()
    found = connection.execute(sa.select(sa.func.min(events.c.id)).where(events.c.job_id == first_job)).scalar_one()
    return int(found)
