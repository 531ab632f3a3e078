"""When submissions are expected to be done, as far as the farm knows. Reads only.

What runs ends when its running time says, what is ready starts when placement has forecast it. What has no forecast,
since it waits for inputs or stands far behind in a line, is counted after that: the chain of its stages, or its work
divided by all cores or slots that there are, whichever is longer, with the running times that its stages have had. What
others have or may submit and would pass it is not in it: it is what can be hoped for, not a promise.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from farm.models import attempts, cores, devices, history, hosts, jobs, literal, nodes
from farm.placement import estimates
from farm.states import JobState
from farm.views import queries
from qeff_engine.spec import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Group:
    """Jobs of one stage and one state of a submission that have not ended.

    Attributes:
        num_cores: of all of them, on all of their devices; 0 of a stage that needs host slots.
        held: one of them is not placed, since the submission is paused.
        expected_s: the longest predicted running time; None before one is ready.
        num_forecast: how many have a forecast of their start.
        ends_at: the latest end by those forecasts.
    """

    state: JobState
    stage: str
    num_jobs: int
    num_cores: int
    held: bool
    expected_s: float | None
    num_forecast: int
    ends_at: float | None


_FIGURES: Mapping[str, sa.ColumnElement[Any]] = {
    "stage": jobs.c.stage,
    "num_jobs": sa.func.count(),
    "num_cores": sa.func.sum(jobs.c.num_cores * jobs.c.num_devices),
    "held": sa.func.max(jobs.c.held),
    "expected_s": sa.func.max(jobs.c.expected_s),
    "num_forecast": sa.func.count(jobs.c.forecast_at),
    "ends_at": sa.func.max(jobs.c.forecast_at + jobs.c.expected_s),
}
_GROUPS = (
    sa.select(jobs.c.submission_id, jobs.c.state, *_FIGURES.values())
    .where(
        jobs.c.submission_id.in_(sa.bindparam("submissions", expanding=True)),
        jobs.c.finished_at.is_(None),
        jobs.c.unsubscribed_at.is_(None),
    )
    .group_by(jobs.c.submission_id, jobs.c.state, jobs.c.stage)
)
_RUNNING = (
    sa.select(jobs.c.submission_id, jobs.c.expected_s, jobs.c.stage, attempts.c.started_at)
    .join(jobs, jobs.c.id == attempts.c.job_id)
    # All that run on the farm, which are few: asked for some submissions, SQLite would look at all of their jobs.
    .where(attempts.c.state == literal("running"), jobs.c.unsubscribed_at.is_(None))
)
_ALIVE = (nodes.c.stopped_at.is_(None), nodes.c.closing_at.is_(None), nodes.c.heartbeat_at >= sa.bindparam("since"))
_SLOTS = (
    sa.select(sa.func.sum(hosts.c.num_slots))
    .join(nodes, nodes.c.host_id == hosts.c.id)
    .where(nodes.c.kind == "host", hosts.c.drained.is_(None), *_ALIVE)
)
_CORES = (
    sa.select(sa.func.count())
    .select_from(cores)
    .join(devices, devices.c.id == cores.c.device_id)
    .join(nodes, nodes.c.device_id == devices.c.id)
    .join(hosts, hosts.c.id == devices.c.host_id)
    .where(cores.c.usable, devices.c.health == "ready", devices.c.drained.is_(None), hosts.c.drained.is_(None), *_ALIVE)
)


def expected(
    connection: sa.Connection, found: Sequence[queries.Submission], *, now: float, heard_since: float
) -> dict[int, float | None]:
    """When each of some submissions, those that have not ended, is expected to be done, by id.

    None when nobody can tell: it is paused, a stage of it was never done on this farm, none of its ready jobs of a
    stage has a forecast, or no machine is there for what waits.

    Args:
        connection: a read transaction.
        found: the submissions.
        now: the database's clock.
        heard_since: nodes whose last heartbeat is older count as dead.
    """
    unfinished = [one for one in found if one.finished_at is None]
    if not unfinished:
        return {}
    farm = _Farm(
        typical_s=_typical_s(connection),
        width={
            True: connection.execute(_CORES, {"since": heard_since}).scalar_one(),
            False: connection.execute(_SLOTS, {"since": heard_since}).scalar_one() or 0,
        },
    )
    running: dict[int, list[Any]] = collections.defaultdict(list)
    for row in connection.execute(_RUNNING):
        running[row.submission_id].append(row)
    groups = _groups(connection, [one.id for one in unfinished])
    return {one.id: _done_at(groups[one.id], running[one.id], farm=farm, now=now) for one in unfinished}


def _groups(connection: sa.Connection, submission_ids: Sequence[int]) -> Mapping[int, list[_Group]]:
    found: dict[int, list[_Group]] = collections.defaultdict(list)
    for submission_id, state, *figures in connection.execute(_GROUPS, {"submissions": submission_ids}):
        found[submission_id].append(_Group(state=JobState(state), **dict(zip(_FIGURES, figures, strict=True))))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Farm:
    """Running times by stage, of stages that were done before, and cores (True) and slots (False) that there are."""

    typical_s: Mapping[str, float]
    width: Mapping[bool, int]


def _typical_s(connection: sa.Connection) -> dict[str, float]:
    query = sa.select(history.c.key, history.c.samples).where(history.c.key.in_([str(stage) for stage in Stage]))
    return {
        row.key: estimates.estimate({row.key: row.samples}, (row.key,)).expected_s for row in connection.execute(query)
    }


def _done_at(groups: Sequence[_Group], running: Sequence[Any], *, farm: _Farm, now: float) -> float | None:
    """When everything of a submission is expected to have ended."""
    if any(group.held or group.stage not in farm.typical_s for group in groups):
        return None
    ends = [now]
    for row in running:
        expected_s = row.expected_s if row.expected_s is not None else farm.typical_s[row.stage]
        ends.append(estimates.ends_at(started_at=row.started_at, reserved_s=expected_s, now=now))
    chain_s, work_s = 0.0, {True: 0.0, False: 0.0}
    for group in groups:
        took_s = farm.typical_s[group.stage]
        all_of_it_s = took_s * (group.num_cores or group.num_jobs)  # jobs of a stage want one kind of place
        if group.state is JobState.READY:
            if group.ends_at is None:  # no machine that lives can run it, or placement has not seen it yet
                return None
            ends.append(group.ends_at)
            work_s[group.num_cores > 0] += all_of_it_s * (1 - group.num_forecast / group.num_jobs)
        elif group.state is JobState.QUEUED:
            ends.append(now + (group.expected_s or took_s))
        elif group.state is JobState.WAITING:
            chain_s += took_s
            work_s[group.num_cores > 0] += all_of_it_s
    if any(work and not farm.width[of_device] for of_device, work in work_s.items()):
        return None
    return max(ends) + max(chain_s, *(work / max(1, farm.width[kind]) for kind, work in work_s.items()))


def unfinished(connection: sa.Connection, *, limit: int) -> list[queries.Submission]:
    """Submissions with jobs that have not ended, newest first."""
    open_ids = sa.select(jobs.c.submission_id).where(jobs.c.finished_at.is_(None), jobs.c.unsubscribed_at.is_(None))
    ids = connection.scalars(open_ids.distinct().order_by(jobs.c.submission_id.desc()).limit(limit))
    return [queries.submission(connection, submission_id) for submission_id in ids]
