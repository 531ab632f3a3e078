"""Jobs whose clock has run out before they ran.

There are four clocks, and none counts what belongs to another: waiting for a place (``wait_limit_s``, here), running
(``run_until`` of an attempt: its supervisor ends it, and :mod:`farm.lifecycle.reaping` if that one does not), the
heartbeat (the attempt's lease), and the whole (``deadline_at``, here; an attempt that runs then ends as at its running
limit).
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import sqlalchemy as sa

from farm import durations
from farm.db import now
from farm.lifecycle import following, holds, leadership, settling
from farm.lifecycle.failures import Failure
from farm.lifecycle.transitions import hold_graph, move_all
from farm.models import attempts, jobs, literal
from farm.states import JobState
from qeff_engine.errors import FailureClass

DEADLINE_PASSED = "The deadline passed before it had ended."

_LATE = Failure(
    failure_class=FailureClass.TIMEOUT,
    message=DEADLINE_PASSED,
    advice="Submit it again with more time (--deadline); `farm retry` goes on without a deadline.",
)
_BEFORE_RUNNING = (JobState.WAITING, JobState.READY, JobState.QUEUED)
_LAST_END = (
    sa.select(sa.func.coalesce(sa.func.max(attempts.c.finished_at), 0.0))
    .where(attempts.c.job_id == jobs.c.id)
    .correlate(jobs)
    .scalar_subquery()
)
# What the index of ready jobs with a limit yields; a pause after a failure and earlier attempts are no waiting.
_WAITED_TOO_LONG = sa.select(jobs.c.id, jobs.c.wait_limit_s).where(
    jobs.c.state == literal(JobState.READY),
    jobs.c.wait_limit_s.is_not(None),
    jobs.c.held == 0,
    jobs.c.unsubscribed_at.is_(None),  # who set the limit has cancelled it
    *(since + jobs.c.wait_limit_s < sa.bindparam("now") for since in (jobs.c.ready_at, jobs.c.not_before, _LAST_END)),
)
_OVERDUE = sa.select(jobs.c.id, jobs.c.state).where(
    jobs.c.finished_at.is_(None),
    jobs.c.deadline_at.is_not(None),
    jobs.c.deadline_at < sa.bindparam("now"),
)
_OVERDUE_BEFORE_RUNNING = _OVERDUE.where(jobs.c.state.in_([str(state) for state in _BEFORE_RUNNING]))
_ANY_LATE = (_OVERDUE_BEFORE_RUNNING.limit(1), _WAITED_TOO_LONG.limit(1))


def expire(connection: sa.Connection, *, limit: int, term: int | None) -> int:
    """Fail jobs that waited too long for a place, or whose deadline has passed; returns how many.

    Raises:
        StaleTransition: the term is over.
    """
    leadership.require_term(connection, term)
    hold_graph(connection)
    at = now(connection)
    late = connection.execute(
        _OVERDUE_BEFORE_RUNNING.order_by(jobs.c.deadline_at, jobs.c.id).limit(limit).with_for_update(),
        {"now": at},
    )
    by_state: dict[JobState, list[int]] = collections.defaultdict(list)
    for row in late:
        by_state[JobState(row.state)].append(row.id)
    # Those that wait come first: a follower that ends with its leader need not be released.
    for state in sorted(by_state, key=lambda state: state is not JobState.WAITING):
        _fail(connection, by_state[state], source=state, failure=_LATE, at=at)
    by_limit: dict[float, list[int]] = collections.defaultdict(list)
    for row in connection.execute(_WAITED_TOO_LONG.limit(limit).with_for_update(), {"now": at}):
        by_limit[row.wait_limit_s].append(row.id)
    for limit_s, ids in by_limit.items():
        waited = Failure(
            failure_class=FailureClass.TIMEOUT,
            message=f"It waited longer than {durations.words(limit_s)} for a place.",
            advice="See what has the places with `farm devices`; give it more time (--wait-limit) or priority.",
        )
        _fail(connection, ids, source=JobState.READY, failure=waited, at=at)
    return sum(map(len, by_state.values())) + sum(map(len, by_limit.values()))


def any_late(connection: sa.Connection) -> bool:
    """Whether :func:`expire` would find something: asked each second, and nothing is locked for it."""
    at = now(connection)
    return any(connection.execute(query, {"now": at}).first() is not None for query in _ANY_LATE)


def _fail(connection: sa.Connection, job_ids: Sequence[int], *, source: JobState, failure: Failure, at: float) -> None:
    values = {"leader_id": None, "node_id": None, **failure.columns()}
    target, reason = JobState.FAILED, failure.message
    followed = holds.leaders(connection, job_ids) if source is JobState.WAITING else []
    move_all(connection, job_ids, "expire", source=source, target=target, reason=reason, at=at, values=values)
    following.leave(connection, followed, at=at)
    following.release_all(connection, job_ids, at=at)
    for job_id in job_ids:
        settling.block_descendants(connection, job_id, because="ran out of time", at=at)
