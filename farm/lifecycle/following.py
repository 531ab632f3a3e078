"""Leaders and followers: jobs of one action key. The leader is live and does the work, the followers wait for it.

A follower takes the leader's result, unless it was submitted to have the work done anew (``skip_cache``) and the leader
was not: then the leader may have begun before that was asked, and the follower only waits for the key to be free.

A leader that its user cancels works on while somebody waits for its result. It is *unsubscribed* then: to its own
submission it has been cancelled at that moment, and its row follows when the work has ended.

All functions are for callers that hold the graph (:func:`farm.lifecycle.transitions.hold_graph`).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from farm.lifecycle import holds
from farm.lifecycle.transitions import chunks, move_all
from farm.models import KINDS, jobs, submissions
from farm.states import LIVE, JobState

_follower, _leader = jobs.alias(), jobs.alias()
_FOLLOWERS = (
    sa.select(
        _follower.c.leader_id,
        _follower.c.id,
        _follower.c.priority,
        _follower.c.kind,
        sa.or_(sa.not_(_follower.c.skip_cache), _leader.c.skip_cache).label("takes_result"),
    )
    .join(_leader, _leader.c.id == _follower.c.leader_id)
    .where(_follower.c.leader_id.in_(sa.bindparam("leaders", expanding=True)))
    .order_by(_follower.c.id)
)
_LEADERS = (
    sa.select(
        jobs.c.id,
        jobs.c.state,
        jobs.c.unsubscribed_at,
        jobs.c.priority,
        jobs.c.kind,
        submissions.c.priority.label("own_priority"),
        submissions.c.kind.label("own_kind"),
    )
    .join(submissions, submissions.c.id == jobs.c.submission_id)
    .where(jobs.c.id.in_(sa.bindparam("leaders", expanding=True)), jobs.c.state.in_([str(state) for state in LIVE]))
    .order_by(jobs.c.id)
)

# How a job looks to its own submission, to which one that works on for others has ended when it was cancelled.
WORKS_FOR_OTHERS = sa.and_(jobs.c.unsubscribed_at.is_not(None), jobs.c.finished_at.is_(None))
SEEN_STATE = sa.case((WORKS_FOR_OTHERS, str(JobState.CANCELLED)), else_=jobs.c.state)
SEEN_FINISHED_AT = sa.func.coalesce(jobs.c.unsubscribed_at, jobs.c.finished_at)


@dataclasses.dataclass(kw_only=True)
class Followers:
    """Who follows one leader, by id: those that take its result, and those that wait for the key only."""

    takers: list[int] = dataclasses.field(default_factory=list)
    others: list[int] = dataclasses.field(default_factory=list)


def followers(connection: sa.Connection, job_ids: Collection[int]) -> dict[int, Followers]:
    """The followers by leader; leaders without any are absent."""
    found: dict[int, Followers] = collections.defaultdict(Followers)
    for row in _rows(connection, _FOLLOWERS, job_ids):
        group = found[row.leader_id]
        (group.takers if row.takes_result else group.others).append(row.id)
    return found


def with_takers(connection: sa.Connection, job_ids: Collection[int]) -> set[int]:
    """Those of some jobs whose result others wait for."""
    return {leader_id for leader_id, group in followers(connection, job_ids).items() if group.takers}


def release(connection: sa.Connection, leader_id: int, job_ids: Sequence[int], *, at: float) -> None:
    """Followers stand for themselves again: the scheduler admits one, and the rest follow that."""
    move_all(
        connection,
        job_ids,
        "unfollow",
        source=JobState.WAITING,
        target=JobState.WAITING,
        reason=f"j{leader_id} ended without a result for it",
        at=at,
        values={"leader_id": None},
    )


def release_all(connection: sa.Connection, leader_ids: Collection[int], *, at: float) -> None:
    """As :func:`release`, all followers of some leaders."""
    for leader_id, group in followers(connection, leader_ids).items():
        release(connection, leader_id, sorted(group.takers + group.others), at=at)


def unsubscribe(connection: sa.Connection, job_ids: Sequence[int], *, source: JobState, reason: str, at: float) -> None:
    """Let leaders work on for their followers alone."""
    values = {"unsubscribed_at": at, "deadline_at": None}  # a deadline was its user's wish, too
    move_all(connection, job_ids, "unsubscribe", source=source, target=source, reason=reason, at=at, values=values)
    weigh(connection, job_ids)


def subscribe_again(connection: sa.Connection, job_ids: Sequence[int], *, source: JobState, at: float) -> None:
    """Let leaders work for their own submission, too, which had cancelled them."""
    deadline = sa.select(submissions.c.deadline_at).where(
        submissions.c.id == jobs.c.submission_id, submissions.c.deadline_at > at
    )
    values = {"unsubscribed_at": None, "deadline_at": deadline.correlate(jobs).scalar_subquery()}
    reason = "a user wants it after all"
    move_all(connection, job_ids, "subscribe", source=source, target=source, reason=reason, at=at, values=values)
    weigh(connection, job_ids)


def leave(connection: sa.Connection, leader_ids: Collection[int], *, at: float) -> None:
    """Some followers of leaders have left: what nobody wants any more ends, the rest is as urgent as who still waits.

    What runs is told to end, as by a user.
    """
    unwanted: dict[JobState, list[int]] = collections.defaultdict(list)
    takers = with_takers(connection, leader_ids)
    for row in _rows(connection, _LEADERS, leader_ids):
        if row.unsubscribed_at is not None and row.id not in takers:
            unwanted[JobState(row.state)].append(row.id)
    reason = "cancelled by a user, and nobody waits for it any more"
    for some in chunks(unwanted.pop(JobState.RUNNING, [])):
        connection.execute(sa.update(jobs).where(jobs.c.id.in_(some)).values(cancel_requested=True, reason=reason))
    for source, ids in unwanted.items():
        assert source in (JobState.READY, JobState.QUEUED), "only a live job leads, and a node has to end what runs"
        target = JobState.CANCELLED
        move_all(connection, ids, "cancel", source=source, target=target, reason=reason, at=at)
        release_all(connection, ids, at=at)
    weigh(connection, leader_ids)


def weigh(connection: sa.Connection, leader_ids: Collection[int]) -> None:
    """Make leaders as urgent as whoever waits for their work: their own submission, unless it cancelled them, too."""
    waiting: dict[int, list[tuple[int, str]]] = collections.defaultdict(list)
    for row in _rows(connection, _FOLLOWERS, leader_ids):
        waiting[row.leader_id].append((row.priority, row.kind))
    for row in _rows(connection, _LEADERS, leader_ids):
        if row.unsubscribed_at is None:
            waiting[row.id].append((row.own_priority, row.own_kind))
        if waiting[row.id]:
            priority, kind = most_urgent(waiting[row.id])
            if (priority, kind) != (row.priority, row.kind):
                values = {"priority": priority, "kind": kind}
                connection.execute(sa.update(jobs).where(jobs.c.id == row.id).values(**values))
    holds.settle(connection, leader_ids)


def most_urgent(found: Collection[tuple[int, str]]) -> tuple[int, str]:
    """The highest priority and the most urgent kind among (priority, kind)."""
    return max(priority for priority, _ in found), min((kind for _, kind in found), key=KINDS.index)


def _rows(connection: sa.Connection, query: Any, job_ids: Collection[int]) -> list[Any]:
    found: list[Any] = []
    for some in chunks(sorted(set(job_ids))):
        found += connection.execute(query, {"leaders": some})
    return found
