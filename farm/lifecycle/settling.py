"""What the end of a job means for others: children, followers, descendants. Called within the job's own transition,
by a caller that holds the graph (:func:`farm.lifecycle.transitions.hold_graph`).

Nothing that has ended changes when what it made is damaged or was deleted. A new job does the work of the one that the
artifact came from, and whoever needs the artifact is pointed to the new one and waits for it. The new job is shared as
any work is: by other jobs of the submission, and with other submissions by its action key. Its own inputs may be gone,
too: that is found when it is admitted.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from farm.lifecycle import following, holds
from farm.lifecycle.failures import Failure
from farm.lifecycle.transitions import chunks, move, move_all
from farm.models import artifacts, edges, events, jobs, point_jobs, submissions
from farm.states import DONE, JobState

_CHILDREN = sa.select(edges.c.child_id).where(edges.c.parent_id.in_(sa.bindparam("parents", expanding=True)))
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


def done(connection: sa.Connection, job_id: int, *, artifact: str, at: float) -> None:
    """A job has its artifact, see :func:`done_all`."""
    done_all(connection, {job_id: artifact}, at=at)


def done_all(
    connection: sa.Connection, found: Mapping[int, str], *, at: float, cancelled: Collection[int] = ()
) -> None:
    """The work of jobs is done (digest of the artifact by job): followers have it too, and children wait for one input
    less.

    Args:
        connection: open transaction.
        found: the artifacts.
        at: the database's time.
        cancelled: those of the jobs that did it for their followers alone.
    """
    ended = [job_id for job_id in found if job_id not in cancelled]
    for leader_id, group in following.followers(connection, list(found)).items():
        move_all(
            connection,
            group.takers,
            "hit",
            source=JobState.WAITING,
            target=JobState.CACHED,
            reason=f"the same work was done by j{leader_id}",
            at=at,
            values={"artifact": found[leader_id], "done_by": leader_id, "leader_id": None},
        )
        ended += group.takers
        following.release(connection, leader_id, group.others, at=at)
    _count_down(connection, ended)


def failed(connection: sa.Connection, job_id: int, *, failure: Failure, at: float) -> None:
    """A job failed for good: its followers fail with it when it would fail again, else one of them tries."""
    group = following.followers(connection, [job_id]).get(job_id, following.Followers())
    if failure.policy.deterministic:
        move_all(
            connection,
            group.takers,
            "fail",
            source=JobState.WAITING,
            target=JobState.FAILED,
            reason=f"the same work failed in j{job_id}",
            at=at,
            values={"leader_id": None, **failure.columns()},
        )
        for follower in group.takers:
            block_descendants(connection, follower, because="failed", at=at)
        following.release(connection, job_id, group.others, at=at)
    else:
        following.release_all(connection, [job_id], at=at)
    block_descendants(connection, job_id, because="failed", at=at)


def block_descendants(connection: sa.Connection, job_id: int, *, because: str, at: float) -> None:
    """Everything that waits for a job, directly or not, is blocked."""
    waiting = reach(connection, [job_id], upwards=False, states=[JobState.WAITING]) - {job_id}
    move_all(
        connection,
        sorted(waiting),
        "block",
        source=JobState.WAITING,
        target=JobState.BLOCKED,
        reason=f"its input j{job_id} {because}",
        at=at,
        values={"leader_id": None},
    )


def reach(connection: sa.Connection, start: Iterable[int], *, upwards: bool, states: Iterable[JobState]) -> set[int]:
    """The jobs reached along edges through jobs in the given states, with the start.

    One that works on for its followers alone counts as cancelled.
    """
    here, there = (edges.c.child_id, edges.c.parent_id) if upwards else (edges.c.parent_id, edges.c.child_id)
    among = set(states)
    wanted: sa.ColumnElement[bool] = jobs.c.state.in_([str(state) for state in among])
    if JobState.CANCELLED in among:
        wanted = wanted | following.WORKS_FOR_OTHERS
    found = set(start)
    border = found
    while border:
        beyond: set[int] = set()
        for some in chunks(sorted(border)):
            beyond.update(
                connection.scalars(sa.select(jobs.c.id).join(edges, there == jobs.c.id).where(here.in_(some), wanted))
            )
        border = beyond - found
        found = found | border
    return found


def _count_down(connection: sa.Connection, finished: Sequence[int]) -> None:
    """Lower the children's count by the number of their inputs that these jobs are."""
    inputs: collections.Counter[int] = collections.Counter()
    for some in chunks(finished):
        inputs.update(connection.scalars(_CHILDREN, {"parents": some}))
    children = sorted(inputs)
    if connection.dialect.name != "sqlite":
        # One order for all writers, so that two parents that finish together cannot wait for each other.
        for some in chunks(children):
            connection.execute(sa.select(jobs.c.id).where(jobs.c.id.in_(some)).order_by(jobs.c.id).with_for_update())
    by_number: dict[int, list[int]] = collections.defaultdict(list)
    for child in children:
        by_number[inputs[child]].append(child)
    for number, counted in by_number.items():
        for some in chunks(counted):
            connection.execute(sa.update(jobs).where(jobs.c.id.in_(some)).values(remaining=jobs.c.remaining - number))


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
