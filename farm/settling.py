"""What the end of a job means for others: children, followers, descendants. Called within the job's own transition,
by a caller that holds the graph (:func:`farm.transitions.hold_graph`)."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence

import sqlalchemy as sa

from farm.failures import Failure
from farm.models import edges, jobs
from farm.states import JobState
from farm.transitions import chunks, move_all

_FOLLOWERS = (
    sa.select(jobs.c.leader_id, jobs.c.id)
    .where(jobs.c.leader_id.in_(sa.bindparam("leaders", expanding=True)))
    .order_by(jobs.c.id)
)
_CHILDREN = sa.select(edges.c.child_id).where(edges.c.parent_id.in_(sa.bindparam("parents", expanding=True)))


def done(connection: sa.Connection, job_id: int, *, artifact: str, at: float) -> None:
    """A job has its artifact, see :func:`done_all`."""
    done_all(connection, {job_id: artifact}, at=at)


def done_all(connection: sa.Connection, found: Mapping[int, str], *, at: float) -> None:
    """Jobs have their artifacts (digest by job): their followers have them too, and the children of all of them wait
    for one input less."""
    ended = list(found)
    for leader_id, followers in _followers(connection, list(found)).items():
        move_all(
            connection,
            followers,
            "hit",
            source=JobState.WAITING,
            target=JobState.CACHED,
            reason=f"the same work was done by j{leader_id}",
            at=at,
            values={"artifact": found[leader_id], "leader_id": None},
        )
        ended += followers
    _count_down(connection, ended)


def failed(connection: sa.Connection, job_id: int, *, failure: Failure, at: float) -> None:
    """A job failed for good: its followers fail with it when it would fail again, else one of them tries."""
    if failure.policy.deterministic:
        followers = _followers(connection, [job_id]).get(job_id, [])
        move_all(
            connection,
            followers,
            "fail",
            source=JobState.WAITING,
            target=JobState.FAILED,
            reason=f"the same work failed in j{job_id}",
            at=at,
            values={"leader_id": None, **failure.columns()},
        )
        for follower in followers:
            block_descendants(connection, follower, because="failed", at=at)
    else:
        release_followers(connection, [job_id], at=at)
    block_descendants(connection, job_id, because="failed", at=at)


def release_followers(connection: sa.Connection, job_ids: Sequence[int], *, at: float) -> None:
    """The followers of jobs stand for themselves again: the scheduler admits one, and the rest follow that."""
    for leader_id, followers in _followers(connection, job_ids).items():
        move_all(
            connection,
            followers,
            "unfollow",
            source=JobState.WAITING,
            target=JobState.WAITING,
            reason=f"j{leader_id} ended without a result",
            at=at,
            values={"leader_id": None},
        )


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
    """The jobs reached along edges through jobs in the given states, with the start."""
    here, there = (edges.c.child_id, edges.c.parent_id) if upwards else (edges.c.parent_id, edges.c.child_id)
    wanted = [str(state) for state in states]
    found = set(start)
    border = found
    while border:
        beyond: set[int] = set()
        for some in chunks(sorted(border)):
            beyond.update(
                connection.scalars(
                    sa.select(jobs.c.id).join(edges, there == jobs.c.id).where(here.in_(some), jobs.c.state.in_(wanted))
                )
            )
        border = beyond - found
        found = found | border
    return found


def _followers(connection: sa.Connection, job_ids: Sequence[int]) -> dict[int, list[int]]:
    """By leader: its followers."""
    found: dict[int, list[int]] = collections.defaultdict(list)
    for some in chunks(sorted(job_ids)):
        for row in connection.execute(_FOLLOWERS, {"leaders": some}):
            found[row.leader_id].append(row.id)
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
