"""Inputs that are gone are made again.

Nothing that has ended changes when what it made is damaged or was deleted. A new job does the work of the one that the
artifact came from, and whoever needs the artifact is pointed to the new one and waits for it. The new job is shared as
any work is: by other jobs of the submission, and with other submissions by its action key. Its own inputs may be gone,
too: that is found when it is admitted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from farm.lifecycle import holds
from farm.lifecycle.transitions import chunks, move
from farm.models import artifacts, edges, events, jobs, point_jobs, submissions
from farm.states import DONE, JobState

# What a new job has in common with the one whose work it does again.
_SAME = (
    *("submission_id", "owner", "stage", "label", "model", "spec", "plan_key", "chain", "num_cores", "num_devices"),
    *("exclusive", "needs", "wait_limit_s", "run_limit_s", "deadline_at"),
)
_ENDED_WELL = [str(state) for state in DONE]
_USABLE = [str(state) for state in (JobState.WAITING, JobState.READY, JobState.QUEUED, JobState.RUNNING, *DONE)]
_parents = jobs.alias()
_LACKING = (
    sa.select(edges.c.child_id, _parents.c.id)
    .join(_parents, _parents.c.id == edges.c.parent_id)
    .join(artifacts, artifacts.c.digest == _parents.c.artifact)
    .where(edges.c.child_id.in_(sa.bindparam("jobs", expanding=True)), artifacts.c.deleted_at.is_not(None))
    .distinct()
    .order_by(edges.c.child_id, _parents.c.id)
)


def lacking(connection: sa.Connection, job_ids: Sequence[int]) -> dict[int, list[int]]:
    """Those of some jobs whose inputs were deleted meanwhile, with the jobs that had made these."""
    found: dict[int, list[int]] = {}
    for some in chunks(job_ids):
        for row in connection.execute(_LACKING, {"jobs": some}):
            found.setdefault(row.child_id, []).append(row.id)
    return found


def wait_for_inputs(connection: sa.Connection, job_id: int, makers: Collection[int], *, at: float) -> None:
    """A waiting job whose inputs were deleted waits until they are made again, instead of failing for want of them."""
    values = point_to(connection, job_id, makers, because="deleted", at=at)
    target, reason = JobState.WAITING, "an input was deleted, and is made again"
    move(connection, job_id, "rebuild", source=JobState.WAITING, target=target, reason=reason, at=at, values=values)


def makers(connection: sa.Connection, job_id: int, digests: Collection[str]) -> list[int]:
    """The inputs' jobs that artifacts came from."""
    query = sa.select(_parents.c.id).join(edges, edges.c.parent_id == _parents.c.id)
    query = query.where(edges.c.child_id == job_id, _parents.c.artifact.in_(digests)).distinct()
    return list(connection.scalars(query.order_by(_parents.c.id)))


def point_to(
    connection: sa.Connection, job_id: int, makers: Collection[int], *, because: str, at: float
) -> dict[str, Any]:
    """Let a job have its inputs from the successors of those that made them; returns what its row gets with that.

    Args:
        connection: open transaction that holds the graph.
        job_id: the job.
        makers: jobs whose artifacts it cannot use.
        because: what those are, for people.
        at: the database's time.
    """
    for maker_id in makers:
        successor_id = _successor(connection, maker_id, wanted_by=job_id, because=because, at=at)
        mine = (edges.c.child_id == job_id, edges.c.parent_id == maker_id)
        connection.execute(sa.update(edges).where(*mine).values(parent_id=successor_id))
    return {"remaining": _undone(connection, job_id), "action_key": None, "key_parts": None}


def _successor(connection: sa.Connection, maker_id: int, *, wanted_by: int, because: str, at: float) -> int:
    """The job that does the work of another again: one that was made for somebody else's sake, or a new one."""
    maker = connection.execute(sa.select(jobs).where(jobs.c.id == maker_id)).one()
    found = connection.scalar(
        sa.select(jobs.c.id)
        .where(
            jobs.c.submission_id == maker.submission_id,
            jobs.c.plan_key == maker.plan_key,
            jobs.c.id > maker_id,
            jobs.c.state.in_(_USABLE),
            jobs.c.unsubscribed_at.is_(None),
            sa.or_(jobs.c.artifact.is_(None), jobs.c.artifact != maker.artifact),
        )
        .order_by(jobs.c.id.desc())
        .limit(1)
    )
    return int(found) if found is not None else _add(connection, maker, wanted_by=wanted_by, because=because, at=at)


def _add(connection: sa.Connection, maker: Any, *, wanted_by: int, because: str, at: float) -> int:
    """Add the job that does another's work again, with the same inputs, in the points of who wants it; its id."""
    reason = f"does the work of j{maker.id} again, whose artifact j{wanted_by} found {because}"
    asked = connection.execute(
        sa.select(submissions.c.priority, submissions.c.kind).where(submissions.c.id == maker.submission_id)
    ).one()
    values = {name: maker._mapping[name] for name in _SAME} | {"priority": asked.priority, "kind": asked.kind}
    row = {**values, "state": str(JobState.WAITING), "reason": reason, "created_at": at}
    added: int = connection.execute(sa.insert(jobs).values(**row).returning(jobs.c.id)).scalar_one()
    told = {"transition": "submit", "to_state": str(JobState.WAITING), "reason": reason}
    connection.execute(sa.insert(events).values(job_id=added, attempt=0, at=at, **told))
    same = sa.select(sa.literal(added), edges.c.input, edges.c.parent_id).where(edges.c.child_id == maker.id)
    connection.execute(sa.insert(edges).from_select(["child_id", "input", "parent_id"], same))
    remaining = _undone(connection, added)
    mine = sa.update(jobs).where(jobs.c.id == added)
    connection.execute(mine.values(remaining=remaining, held=holds.OF_SUBMISSION))
    served = sa.select(point_jobs.c.point_id, sa.literal(added)).where(point_jobs.c.job_id == wanted_by)
    connection.execute(sa.insert(point_jobs).from_select(["point_id", "job_id"], served))
    return added


def _undone(connection: sa.Connection, job_id: int) -> int:
    """How many inputs of a job are not done."""
    parent = jobs.alias()
    query = sa.select(sa.func.count()).select_from(edges.join(parent, parent.c.id == edges.c.parent_id))
    return int(
        connection.execute(query.where(edges.c.child_id == job_id, parent.c.state.not_in(_ENDED_WELL))).scalar_one()
    )
