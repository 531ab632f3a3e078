"""What users ask of work that goes on, beside ending it for good: to hold submissions, to give devices and hosts no new
work, to hand attempts back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import sqlalchemy as sa

from farm.db import now
from farm.errors import NotFound, Refused
from farm.lifecycle import claims, holds
from farm.lifecycle.transitions import chunks, hold_graph
from farm.models import attempts, core_leases, devices, hosts, jobs, literal, nodes, submissions
from farm.states import JobState

Key = tuple[int, int]  # job, attempt

_WISHES = (
    sa.select(attempts.c.job_id, attempts.c.number, jobs.c.cancel_requested, attempts.c.hand_back)
    .join(jobs, jobs.c.id == attempts.c.job_id)
    .where(
        attempts.c.job_id.in_(sa.bindparam("job_ids", expanding=True)),
        attempts.c.state == literal("running"),
        sa.or_(jobs.c.cancel_requested, attempts.c.hand_back.is_not(None)),
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked of a running attempt.

    Attributes:
        cancel: its job shall end; otherwise the attempt shall, and the job be placed again.
        reason: one sentence for people.
    """

    cancel: bool
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where work runs: a device, or a host with all of its devices.

    Attributes:
        name: for people.
        host_id: of the host, or of the device's host.
        device_id: None for a host.
    """

    name: str
    host_id: int
    device_id: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halt:
    """What became of the work when new work was kept away.

    Attributes:
        already: it was kept away before.
        running: jobs of attempts that go on.
        given_back: jobs that were on their way to a node and are placed again later.
    """

    already: bool
    running: tuple[int, ...]
    given_back: tuple[int, ...]


def wishes(connection: sa.Connection, keys: Sequence[Key]) -> dict[Key, Wish]:
    """What is asked of some running attempts; those of which nothing is asked are absent."""
    wanted, found = set(keys), {}
    for some in chunks(sorted({job_id for job_id, _ in keys})):
        for row in connection.execute(_WISHES, {"job_ids": some}):
            key = (row.job_id, row.number)
            if key in wanted:
                reason = "cancelled by a user" if row.cancel_requested else row.hand_back
                found[key] = Wish(cancel=bool(row.cancel_requested), reason=reason)
    return found


def pause(connection: sa.Connection, submission_id: int, *, by: str) -> Halt:
    """Place nothing more of a submission; what runs goes on. Jobs that others' work follows go on, too.

    Raises:
        NotFound: no such submission.
        Refused: all of its jobs have ended.
    """
    hold_graph(connection)
    already = _paused(connection, submission_id)
    if not already:
        mine = sa.update(submissions).where(submissions.c.id == submission_id)
        connection.execute(mine.values(paused_at=now(connection), paused_by=by))
        holds.of_submission(connection, submission_id)
    queued = connection.execute(
        sa.select(jobs.c.id)
        .where(jobs.c.state == literal(JobState.QUEUED), jobs.c.held == 1)
        .order_by(jobs.c.id)
        .with_for_update()
    )
    given_back = [row.id for row in queued]
    claims.give_back_all(connection, given_back, reason=f"paused by {by}")
    running = connection.scalars(
        sa.select(jobs.c.id)
        .where(jobs.c.submission_id == submission_id, jobs.c.state == str(JobState.RUNNING))
        .order_by(jobs.c.id)
    )
    return Halt(already=already, running=tuple(running), given_back=tuple(given_back))


def resume(connection: sa.Connection, submission_id: int) -> bool:
    """Place jobs of a submission again; whether it was paused.

    Raises:
        NotFound: no such submission.
    """
    hold_graph(connection)
    found = connection.execute(
        sa.select(submissions.c.paused_at).where(submissions.c.id == submission_id)
    ).one_or_none()
    if found is None:
        raise NotFound(f"There is no submission s{submission_id}. See them with: farm list")
    mine = sa.update(submissions).where(submissions.c.id == submission_id)
    connection.execute(mine.values(paused_at=None, paused_by=None))
    holds.of_submission(connection, submission_id)
    at = now(connection)
    # The clock of waiting for a place counts from the last of several times; a pause is no waiting.
    limited = jobs.c.submission_id == submission_id, jobs.c.wait_limit_s.is_not(None), jobs.c.not_before < at
    connection.execute(sa.update(jobs).where(*limited, jobs.c.finished_at.is_(None)).values(not_before=at))
    return found.paused_at is not None


def _paused(connection: sa.Connection, submission_id: int) -> bool:
    row = connection.execute(
        sa.select(
            submissions.c.paused_at,
            sa.exists().where(jobs.c.submission_id == submission_id, jobs.c.finished_at.is_(None)).label("live"),
        ).where(submissions.c.id == submission_id)
    ).one_or_none()
    if row is None:
        raise NotFound(f"There is no submission s{submission_id}. See them with: farm list")
    if not row.live:
        raise Refused(f"s{submission_id} has ended: only a submission with jobs that have not ended can be paused.")
    return row.paused_at is not None


def drain(connection: sa.Connection, place: Place, *, by: str, reason: str) -> Halt:
    """Give a device or a host no new work; what runs there goes on, and what was on its way goes elsewhere."""
    hold_graph(connection)
    given_back = _queued_at(connection, place)
    words = f"{place.name} is drained by {by}"
    claims.give_back_all(connection, given_back, reason=f"{words}: {reason}" if reason else words)
    table, mine = _rows(place)
    already = connection.scalar(sa.select(table.c.drained_at).where(mine)) is not None
    values = {"drained": reason, "drained_by": by, "drained_at": now(connection)}
    connection.execute(sa.update(table).where(mine).values(values))
    running = sorted({job_id for job_id, _ in _running_at(connection, place)})
    return Halt(already=already, running=tuple(running), given_back=tuple(given_back))


def undrain(connection: sa.Connection, place: Place) -> bool:
    """Give a device or a host work again; whether it was drained. A device of a drained host stays without."""
    table, mine = _rows(place)
    was = connection.scalar(sa.select(table.c.drained_at).where(mine)) is not None
    connection.execute(sa.update(table).where(mine).values(drained=None, drained_by=None, drained_at=None))
    return was


def hand_back(connection: sa.Connection, place: Place, *, reason: str) -> tuple[int, ...]:
    """Let nodes end the attempts that run at a place, and give their jobs back; returns the jobs."""
    keys = _running_at(connection, place)
    for some in chunks(keys):
        connection.execute(
            sa.update(attempts)
            .where(sa.tuple_(attempts.c.job_id, attempts.c.number).in_(some), attempts.c.state == "running")
            .values(hand_back=reason)
        )
    return tuple(sorted({job_id for job_id, _ in keys}))


def occupants(connection: sa.Connection, place: Place) -> tuple[int, ...]:
    """Jobs of which something runs at a place, or may: cores of a lost attempt drain until its host has looked."""
    draining = sa.select(core_leases.c.job_id).join(devices, devices.c.id == core_leases.c.device_id)
    draining = draining.where(core_leases.c.state == "draining", devices.c.host_id == place.host_id)
    if place.device_id is not None:
        draining = draining.where(devices.c.id == place.device_id)
    running = {job_id for job_id, _ in _running_at(connection, place)}
    return tuple(sorted(running | set(connection.scalars(draining))))


def places(connection: sa.Connection) -> list[Place]:
    """Every host and every device; a device that is lost only if no other has its name."""
    found = [
        Place(name=row.name, host_id=row.id) for row in connection.execute(sa.select(hosts).order_by(hosts.c.name))
    ]
    query = (
        sa.select(devices.c.id, devices.c.host_id, devices.c.sku, devices.c.qid, hosts.c.name.label("host"))
        .join(hosts, hosts.c.id == devices.c.host_id)
        .order_by(hosts.c.name, devices.c.health == "lost", devices.c.qid, devices.c.id)
    )
    named: dict[tuple[str, str], Place] = {}
    for row in connection.execute(query):
        name = f"{row.sku}/{row.qid}"
        named.setdefault((row.host, name), Place(name=name, host_id=row.host_id, device_id=row.id))
    names = [name for _, name in named]
    for (host, name), place in named.items():
        full = f"{host}/{name}"
        found.append(dataclasses.replace(place, name=full) if names.count(name) > 1 else place)
    return found


def _rows(place: Place) -> tuple[sa.Table, sa.ColumnElement[bool]]:
    """The table of a place and the condition for its row."""
    if place.device_id is None:
        return hosts, hosts.c.id == place.host_id
    return devices, devices.c.id == place.device_id


def _queued_at(connection: sa.Connection, place: Place) -> list[int]:
    """Jobs that are on their way to a place; their rows are locked."""
    rows = connection.execute(
        sa.select(jobs.c.id, jobs.c.placed_on, nodes.c.host_id, nodes.c.device_id)
        .join(nodes, nodes.c.id == jobs.c.node_id)
        .where(jobs.c.state == literal(JobState.QUEUED))
        .order_by(jobs.c.id)
        .with_for_update(of=jobs)
    ).all()
    if place.device_id is None:
        return [row.id for row in rows if row.host_id == place.host_id]
    return [row.id for row in rows if place.device_id in (row.device_id, *(row.placed_on or ()))]


def _running_at(connection: sa.Connection, place: Place) -> list[Key]:
    """Attempts that run at a place."""
    if place.device_id is None:
        query = sa.select(attempts.c.job_id, attempts.c.number).join(nodes, nodes.c.id == attempts.c.node_id)
        query = query.where(attempts.c.state == literal("running"), nodes.c.host_id == place.host_id)
    else:
        query = sa.select(core_leases.c.job_id, core_leases.c.attempt).distinct()
        query = query.where(core_leases.c.device_id == place.device_id, core_leases.c.state == "held")
    return sorted((row[0], row[1]) for row in connection.execute(query))
