"""What the end of a job means for others: children, followers, descendants. Called within the job's own transition,
by a caller that holds the graph (:func:`farm.lifecycle.transitions.hold_graph`).
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Mapping, Sequence

import sqlalchemy as sa

from farm.lifecycle import following
from farm.lifecycle.failures import Failure
from farm.lifecycle.transitions import chunks, move_all
from farm.models import edges, jobs
from farm.states import JobState

_CHILDREN = sa.select(edges.c.child_id).where(edges.c.parent_id.in_(sa.bindparam("parents", expanding=True)))


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
