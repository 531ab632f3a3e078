"""What a node does to a job it has claimed: keep it, end it. The attempt's number is the fence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from farm.db import now
from farm.errors import StaleTransition
from farm.lifecycle import failures, following, health, leases, results, settling
from farm.lifecycle.claims import claim, give_back
from farm.lifecycle.failures import Failure
from farm.lifecycle.leases import confirm_gone
from farm.lifecycle.transitions import chunks, hold_graph, move, move_each
from farm.models import attempts, jobs, literal
from farm.records import ArtifactRecord, Success, Usage
from farm.settings import FAILURES_BELIEVED_S
from farm.states import JobState
from qeff_engine.errors import FailureClass
from qeff_engine.spec import Stage

__all__ = [
    "cancel_attempt",
    "claim",
    "confirm_gone",
    "fail",
    "give_back",
    "heartbeat",
    "interrupt",
    "succeed",
    "succeed_all",
]

NOTHING_USED = Usage()

_COUNTED = sa.select(
    *(jobs.c[name] for name in ("failures", "ram_bytes", "cancel_requested", "unsubscribed_at"))
).where(jobs.c.id == sa.bindparam("job"))
_FAILED_BEFORE = (
    sa.select(attempts.c.failure_class)
    .where(attempts.c.job_id == sa.bindparam("job"), attempts.c.failure_class.is_not(None))
    .order_by(attempts.c.number.desc())
    .limit(sa.bindparam("failures"))
)
_UNSUBSCRIBED = sa.select(jobs.c.id).where(
    jobs.c.id.in_(sa.bindparam("jobs", expanding=True)), jobs.c.unsubscribed_at.is_not(None)
)
_REPLACE = (  # a job that its user cancelled may have succeeded for others, and do so again
    sa.update(attempts)
    .where(
        attempts.c.job_id.in_(sa.bindparam("jobs", expanding=True)),
        attempts.c.state == literal("succeeded"),
        attempts.c.replaced_at.is_(None),
    )
    .values(replaced_at=sa.bindparam("at"))
)
_RESERVED = sa.select(attempts.c.ram_bytes).where(
    attempts.c.job_id == sa.bindparam("job"), attempts.c.number == sa.bindparam("fence")
)
_UPDATE = sa.update(attempts).where(  # nobody changes an attempt that is over
    attempts.c.job_id == sa.bindparam("job"),
    attempts.c.number == sa.bindparam("fence"),
    attempts.c.state == "running",
)


def heartbeat(
    connection: sa.Connection,
    job_id: int,
    attempt: int,
    *,
    lease_s: float,
    progress: str | None = None,
    fraction: float | None = None,
    run_left_s: float | None = None,
) -> bool:
    """Renew the lease and tell how far the stage is; True when a user asked to stop.

    Args:
        connection: open transaction.
        job_id: the job.
        attempt: the fence.
        lease_s: how long the lease holds from now.
        progress, fraction: the stage's last words.
        run_left_s: what is left of its time by the node's own clock, which nobody can move; None without a limit.

    Raises:
        StaleTransition: the attempt is no longer the caller's.
    """
    said: dict[str, Any] = {"progress": progress, "fraction": fraction} if progress is not None else {}
    at = now(connection)
    if run_left_s is not None:
        said["run_until"] = at + run_left_s
    key = {"job": job_id, "fence": attempt}
    renewed = connection.execute(_UPDATE, {**key, "lease_until": at + lease_s, **said})
    if renewed.rowcount != 1:
        raise StaleTransition(f"Attempt {attempt} of job j{job_id} is over: its heartbeat came too late.")
    return bool(_counted(connection, job_id).cancel_requested)


def succeed(
    connection: sa.Connection,
    job_id: int,
    attempt: int,
    *,
    artifact: ArtifactRecord,
    figures: Mapping[str, Any],
    usage: Usage,
) -> None:
    """End one attempt that succeeded, as :func:`succeed_all` ends many.

    Raises:
        StaleTransition: the attempt is no longer the caller's.
    """
    success = Success(job_id=job_id, attempt=attempt, artifact=artifact, figures=figures, usage=usage)
    if job_id not in succeed_all(connection, [success]):
        raise StaleTransition(f"Job j{job_id} is no longer running at attempt {attempt}: succeed came too late.")


def succeed_all(connection: sa.Connection, ended: Sequence[Success]) -> set[int]:
    """Record published artifacts, remember the actions, settle followers and children; returns the jobs that moved.

    A job whose attempt is no longer the caller's is left alone.
    """
    if not ended:
        return set()
    hold_graph(connection, shared=True)
    at = now(connection)
    ended = sorted(ended, key=lambda one: one.job_id)  # in the order in which heartbeats lock attempts
    results.record_all(connection, [one.artifact for one in ended], at=at)
    cancelled = _unsubscribed(connection, [one.job_id for one in ended])
    moved = _move_successes(connection, [one for one in ended if one.job_id not in cancelled], at=at)
    moved |= _move_cancelled_successes(connection, [one for one in ended if one.job_id in cancelled], at=at)
    mine = [one for one in ended if one.job_id in moved]
    for some in chunks([one.job_id for one in mine]):
        connection.execute(_REPLACE, {"jobs": some, "at": at})
    for one in mine:
        end_attempt(
            connection,
            one.job_id,
            one.attempt,
            state="succeeded",
            usage=one.usage,
            at=at,
            figures=dict(one.figures),
        )
    runs = [(one.job_id, one.attempt) for one in mine if one.artifact.stage == Stage.RUN]
    if runs:
        health.forget_faults(connection, runs)
    leases.release_all(connection, [(one.job_id, one.attempt) for one in mine])
    results.remember_successes(connection, mine, at=at)
    settling.done_all(connection, {one.job_id: one.artifact.digest for one in mine}, at=at, cancelled=cancelled)
    return moved


def _unsubscribed(connection: sa.Connection, job_ids: Sequence[int]) -> set[int]:
    """Those of some jobs that their users cancelled while others wait for them."""
    found: set[int] = set()
    for some in chunks(job_ids):
        found.update(connection.scalars(_UNSUBSCRIBED, {"jobs": some}))
    return found


def _move_successes(connection: sa.Connection, ended: Sequence[Success], *, at: float) -> set[int]:
    """End jobs that have their artifacts; those that were still at that attempt."""
    rows = [
        {
            "id": one.job_id,
            "attempt": one.attempt,
            "reason": "done",
            "artifact": one.artifact.digest,
            "done_by": one.job_id,
            "cancel_requested": False,
        }
        for one in ended
    ]
    return set(move_each(connection, rows, "succeed", source=JobState.RUNNING, target=JobState.SUCCEEDED, at=at))


def _move_cancelled_successes(connection: sa.Connection, ended: Sequence[Success], *, at: float) -> set[int]:
    """As :func:`_move_successes`, jobs that worked on for others only."""
    reason = "cancelled by a user; those who waited have its result"
    rows = [{"id": one.job_id, "attempt": one.attempt, "reason": reason} for one in ended]
    return set(move_each(connection, rows, "cancel", source=JobState.RUNNING, target=JobState.CANCELLED, at=at))


def fail(
    connection: sa.Connection,
    job_id: int,
    attempt: int,
    *,
    failure_class: FailureClass | str,
    message: str,
    usage: Usage,
    line: str = "",
    advice: str = "",
    as_keyed: bool = True,
    believed_for_s: float = FAILURES_BELIEVED_S,
) -> JobState:
    """The attempt failed; returns ``ready`` when the job is tried again, else ``failed`` or ``cancelled``.

    Args:
        connection: open transaction.
        job_id, attempt: the attempt.
        failure_class: decides what follows, see :mod:`farm.lifecycle.failures`.
        message: for people.
        usage: what the attempt used.
        line: the line of its log that matters.
        advice: what to do; empty for what the class says.
        as_keyed: see :class:`farm.records.Success`.
        believed_for_s: for how long the same work is taken to fail, when the class says that it would.

    Raises:
        StaleTransition: the attempt is no longer the caller's.
    """
    hold_graph(connection)
    failure = Failure(failure_class=FailureClass(failure_class), message=message, line=line, advice=advice)
    job = _counted(connection, job_id)
    if job.cancel_requested:
        cancel_attempt(connection, job_id, attempt, usage=usage)
        return JobState.CANCELLED
    at = now(connection)
    name, target, values = after_failure(
        connection, job_id, attempt, failure=failure, names=("retry_later", "fail"), at=at, usage=usage
    )
    kind = failure.failure_class
    again = target is JobState.READY
    move(
        connection,
        job_id,
        name,
        source=JobState.RUNNING,
        target=target,
        reason=f"attempt {attempt} failed ({kind}): {message}" if again else f"failed ({kind})",
        at=at,
        attempt=attempt,
        values=values,
    )
    end_attempt(connection, job_id, attempt, state="failed", usage=usage, at=at, failure=failure)
    leases.release(connection, job_id, attempt=attempt)
    if again:
        return target
    if failure.policy.deterministic and as_keyed:
        results.remember_failure(connection, job_id, failure=failure, at=at, believed_for_s=believed_for_s)
    settling.failed(connection, job_id, failure=failure, at=at)
    return target


def after_failure(
    connection: sa.Connection,
    job_id: int,
    attempt: int,
    *,
    failure: Failure,
    names: tuple[str, str],
    at: float,
    usage: Usage = NOTHING_USED,
) -> tuple[str, JobState, dict[str, Any]]:
    """The transition of a job whose attempt has failed, its target, and what the job's row gets with it.

    Args:
        connection: open transaction that holds the graph.
        job_id, attempt: the attempt.
        failure: why.
        names: the transition when the job is tried again, and the one when it is not.
        at: the database's time.
        usage: what the attempt used.
    """
    job = _counted(connection, job_id)
    kind = failure.failure_class
    before = connection.scalars(_FAILED_BEFORE, {"job": job_id, "failures": job.failures}).all()
    same_class = before.count(str(kind))
    values: dict[str, Any] = {"failures": job.failures + 1}
    if failures.is_tried_again(kind, same_class=same_class, failures=job.failures):
        pause_s = failures.pause_s(kind, same_class=same_class, job_id=job_id, attempt=attempt)
        memory = failures.memory_bytes(
            kind,
            predicted_bytes=job.ram_bytes,
            reserved_bytes=connection.scalar(_RESERVED, {"job": job_id, "fence": attempt}) or 0,
            peak_rss_bytes=usage.peak_rss_bytes,
        )
        return names[0], JobState.READY, {**values, "not_before": at + pause_s, "ram_bytes": memory, "node_id": None}
    if job.unsubscribed_at is not None:
        return "cancel", JobState.CANCELLED, values
    return names[1], JobState.FAILED, {**values, **failure.columns()}


def interrupt(connection: sa.Connection, job_id: int, attempt: int, *, reason: str) -> JobState:
    """The node is shutting down and has stopped the attempt; returns ``ready``, or ``cancelled`` when a user asked.

    The job is placed again, and nothing counts against it.

    Raises:
        StaleTransition: the attempt is no longer the caller's.
    """
    hold_graph(connection)
    if _counted(connection, job_id).cancel_requested:
        cancel_attempt(connection, job_id, attempt, usage=Usage())
        return JobState.CANCELLED
    at = now(connection)
    move(
        connection,
        job_id,
        "interrupt",
        source=JobState.RUNNING,
        target=JobState.READY,
        reason=reason,
        at=at,
        attempt=attempt,
        values={"node_id": None},
    )
    end_attempt(connection, job_id, attempt, state="interrupted", usage=Usage(), at=at)
    leases.release(connection, job_id, attempt=attempt)
    return JobState.READY


def cancel_attempt(connection: sa.Connection, job_id: int, attempt: int, *, usage: Usage) -> None:
    """The node has stopped the attempt because a user asked.

    Raises:
        StaleTransition: the attempt is no longer the caller's.
    """
    hold_graph(connection)
    at = now(connection)
    move(
        connection,
        job_id,
        "cancel",
        source=JobState.RUNNING,
        target=JobState.CANCELLED,
        reason="cancelled by a user",
        at=at,
        attempt=attempt,
    )
    end_attempt(connection, job_id, attempt, state="cancelled", usage=usage, at=at)
    leases.release(connection, job_id, attempt=attempt)
    following.release_all(connection, [job_id], at=at)
    settling.block_descendants(connection, job_id, because="was cancelled", at=at)


def end_attempt(
    connection: sa.Connection,
    job_id: int,
    attempt: int,
    *,
    state: str,
    usage: Usage,
    at: float,
    figures: dict[str, Any] | None = None,
    failure: Failure | None = None,
) -> None:
    """Write how a running attempt ended; part of the job's transition in the same transaction."""
    values: dict[str, Any] = {"state": state, "finished_at": at, "exit_code": usage.exit_code}
    if usage.log_path is not None:
        values |= {"log_path": usage.log_path, "cpu_s": usage.cpu_s, "peak_rss_bytes": usage.peak_rss_bytes}
    if figures is not None:
        values["figures"] = figures
    if failure is not None:
        columns = failure.columns()
        values |= {"message": columns.pop("failure_message"), **columns}
    ended = connection.execute(_UPDATE, {"job": job_id, "fence": attempt, **values})
    if ended.rowcount != 1:
        raise StaleTransition(f"Attempt {attempt} of job j{job_id} is over already.")


def _counted(connection: sa.Connection, job_id: int) -> Any:
    """A row with how often a job failed and whether a user asked it to stop."""
    return connection.execute(_COUNTED, {"job": job_id}).one()
