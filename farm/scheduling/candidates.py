"""Which ready jobs placement looks at: the heads of all lines, so that no owner, kind or priority hides another.

A line is the ready jobs of one owner, kind and priority for one kind of place, oldest first. In whatever way placement
weighs owners, kinds, priorities and ages, whoever stands behind in a line comes after those before him; so a few of
each line are enough, however many jobs are ready. Both databases find them by one index, jumping from line to line.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from farm.db import now, recordset
from farm.lifecycle.transitions import chunks
from farm.models import KINDS, attempts, jobs, literal
from farm.placement.estimates import Estimate
from farm.records import ReadyJob
from farm.scheduling import history
from farm.states import JobState
from qeff_engine.errors import FailureClass
from qeff_engine.spec import Stage

_STAGES = tuple(map(str, Stage))
_NONE: frozenset[int] = frozenset()
_MIN_OF_LINE = 4
_MAX_PRIORITIES = 64  # of one owner and kind; the jobs of lower ones wait until there are fewer
_COLUMNS = (
    *("id", "stage", "kind", "owner", "model", "priority", "ready_at", "chain"),
    *("num_cores", "num_devices", "exclusive", "needs", "ram_bytes", "expected_s", "reserved_s"),
)
_NOTED = ("failures", "reason", "forecast_at")  # also of a head: what the rows say now
# What a device has to do with; another one may well do better.
_OF_DEVICE = (FailureClass.DEVICE_LOST, FailureClass.OUT_OF_MEMORY_DEVICE)
# In the order of the index of unfinished jobs, or SQLite would look through all that have ended.
UNFINISHED = sa.select(jobs.c.id).where(jobs.c.finished_at.is_(None)).order_by(jobs.c.plan_key).limit(1)


def any_unfinished(connection: sa.Connection) -> bool:
    """Whether there is a job that has not ended."""
    return connection.execute(UNFINISHED).first() is not None


def any_ready(connection: sa.Connection) -> bool:
    """Whether there is a job that may be placed, if not before a later time."""
    return any(connection.execute(query).first() is not None for query in _any_ready_queries())


def ready(connection: sa.Connection, *, limit: int, of_device: bool | None = None) -> list[ReadyJob]:
    """Jobs that may be placed now, of every line the first few; in the order of priority and age.

    Args:
        connection: a read transaction.
        limit: how many, about; more when there are more than a quarter as many lines.
        of_device: only those that want cores, or only those that want a host slot; None for both, as many of each.
    """
    kinds = (True, False) if of_device is None else (of_device,)
    return jobs_of(connection, [row for kind in kinds for row in heads(connection, limit=limit, of_device=kind)])


def heads(connection: sa.Connection, *, limit: int, of_device: bool) -> Sequence[Any]:
    """Rows of the jobs of :func:`ready` that want one kind of place, with what is noted about them."""
    lines = [row._asdict() for row in connection.execute(lines_query(of_device=of_device))]
    if not lines:
        return ()
    each = max(_MIN_OF_LINE, limit // len(lines))
    given = {"rows": lines, "each": each, "now": now(connection)}
    return connection.execute(heads_query(connection.dialect.name, of_device=of_device), given).all()


def jobs_of(
    connection: sa.Connection, rows: Sequence[Any], *, predicted: Mapping[int, Estimate] = MappingProxyType({})
) -> list[ReadyJob]:
    """The jobs of rows of :func:`heads`, in the order of priority and age.

    Args:
        connection: the read transaction of the rows.
        rows: of any kinds of places.
        predicted: by job, what it is predicted to take instead of what the row says.
    """
    avoid = _avoid(connection, [row.id for row in rows if row.failures])
    typical_s = history.typical_s(connection)
    found = [_job(row, avoid=avoid, typical_s=typical_s, predicted=predicted.get(row.id)) for row in rows]
    return sorted(found, key=lambda job: (-job.priority, job.ready_at, job.id))


def _job(
    row: Any, *, avoid: Mapping[int, frozenset[int]], typical_s: Mapping[str, float], predicted: Estimate | None
) -> ReadyJob:
    values = dict(zip(_COLUMNS, row, strict=False))  # by place: a row by name costs as much as all the rest of a round
    if predicted is not None:
        values["expected_s"], values["reserved_s"] = predicted.expected_s, predicted.reserved_s
        if not row.failures:  # else it may have been raised for the next try
            values["ram_bytes"] = predicted.ram_bytes or values["ram_bytes"]
    own_s = values["expected_s"] if values["expected_s"] is not None else typical_s[values["stage"]]
    # Each chain ends with the pipeline's last stage.
    behind_s = sum(typical_s[stage] for stage in _STAGES[-values["chain"] :]) if values["chain"] else 0.0
    return ReadyJob(**values, rest_s=own_s + behind_s, avoid=avoid.get(values["id"], _NONE))


@functools.cache
def lines_query(*, of_device: bool) -> sa.Select[Any]:
    """Owner, kind and priority of every line for one kind of place."""
    owners = sa.select(sa.func.min(jobs.c.owner).label("owner")).where(*_line(of_device)).cte("owners", recursive=True)
    next_owner = sa.select(sa.func.min(jobs.c.owner)).where(*_line(of_device), jobs.c.owner > owners.c.owner)
    owners = owners.union_all(
        sa.select(next_owner.correlate(owners).scalar_subquery()).where(owners.c.owner.is_not(None))
    )
    kinds = sa.union_all(*(sa.select(sa.literal(kind).label("kind")) for kind in KINDS)).subquery("kinds")
    highest = sa.select(sa.func.max(jobs.c.priority)).where(
        *_line(of_device), jobs.c.owner == owners.c.owner, jobs.c.kind == kinds.c.kind
    )
    lines = (
        sa.select(
            owners.c.owner,
            kinds.c.kind,
            highest.correlate(owners, kinds).scalar_subquery().label("priority"),
            sa.literal(1).label("place"),
        )
        .select_from(owners.join(kinds, sa.true()))
        .where(owners.c.owner.is_not(None))
        .cte("lines", recursive=True)
    )
    lower = sa.select(sa.func.max(jobs.c.priority)).where(
        *_line(of_device),
        jobs.c.owner == lines.c.owner,
        jobs.c.kind == lines.c.kind,
        jobs.c.priority < lines.c.priority,
    )
    lines = lines.union_all(
        sa.select(lines.c.owner, lines.c.kind, lower.correlate(lines).scalar_subquery(), lines.c.place + 1).where(
            lines.c.priority.is_not(None), lines.c.place < _MAX_PRIORITIES
        )
    )
    return sa.select(lines.c.owner, lines.c.kind, lines.c.priority).where(lines.c.priority.is_not(None))


@functools.cache
def heads_query(dialect: str, *, of_device: bool) -> sa.Select[Any]:
    """The first ``each`` jobs of the lines in ``rows``, without those that are not to be tried before a time."""
    lines = recordset(dialect, jobs, ["owner", "kind", "priority"])
    one = jobs.alias("one")
    head = (
        sa.select(one.c.id)
        .where(
            *_line(of_device, one),
            one.c.owner == lines.c.owner,
            one.c.kind == lines.c.kind,
            one.c.priority == lines.c.priority,
            one.c.not_before <= sa.bindparam("now"),
        )
        .order_by(one.c.ready_at, one.c.id)
        .limit(sa.bindparam("each"))
    )
    columns = [jobs.c[name] for name in (*_COLUMNS, *_NOTED)]
    if dialect == "sqlite":  # it has no LATERAL
        return sa.select(*columns).select_from(lines.join(jobs, jobs.c.id.in_(head.correlate(lines))))
    heads = head.correlate(lines).lateral("heads")
    return sa.select(*columns).select_from(lines.join(heads, sa.true()).join(jobs, jobs.c.id == heads.c.id))


def _line(of_device: bool, table: Any = jobs) -> tuple[sa.ColumnElement[bool], ...]:
    """The condition of the index, word by word."""
    cores = table.c.num_cores > literal(0) if of_device else table.c.num_cores == literal(0)
    return table.c.state == literal(JobState.READY), table.c.held == literal(0), cores


def _avoid(connection: sa.Connection, job_ids: Sequence[int]) -> dict[int, frozenset[int]]:
    """By job: the devices that failed it."""
    found: dict[int, set[int]] = collections.defaultdict(set)
    for some in chunks(job_ids):
        query = sa.select(attempts.c.job_id, attempts.c.placed_on).where(
            attempts.c.job_id.in_(some), attempts.c.failure_class.in_([str(kind) for kind in _OF_DEVICE])
        )
        for row in connection.execute(query):
            found[row.job_id].update(place["device_id"] for place in row.placed_on or ())
    return {job_id: frozenset(device_ids) for job_id, device_ids in found.items()}


@functools.cache
def _any_ready_queries() -> tuple[sa.Select[tuple[int]], ...]:
    return tuple(sa.select(jobs.c.id).where(*_line(of_device)).limit(1) for of_device in (True, False))
