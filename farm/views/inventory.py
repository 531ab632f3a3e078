"""The read side of hosts and devices: what there is, what is free, who holds the rest. Writes nothing."""

from __future__ import annotations

import collections
import dataclasses

import sqlalchemy as sa

from farm.models import core_leases, cores, devices, host_leases, hosts, jobs, leader, nodes, submissions
from farm.needs import KnownDevice, sdk_of
from farm.states import JobState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """An attempt that holds cores of a device.

    Attributes:
        num_cores: how many.
        draining: the attempt was lost, and its host has not yet confirmed that its processes are gone.
    """

    job_id: int
    attempt: int
    label: str
    submission_id: int
    num_cores: int
    draining: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drained:
    """A user lets a device or a host get no new work.

    Attributes:
        by: who.
        at: since when.
        reason: in the user's words; may be empty.
        host: it is the host that is drained, with all of its devices.
    """

    by: str
    at: float
    reason: str
    host: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceView:
    """A device and its cores.

    Attributes:
        num_cores: cores that may be used.
        free: of those, held by nobody.
        alive: a node that is pinned to it has been heard lately.
        drained: who gives it or its host no new work, since when and why; None when nobody does.
        labels: of it and of its host.
        sdk: version of its host's SDK.
    """

    id: int
    host: str
    qid: int
    sku: str
    simulated: bool
    dram_mb: int
    health: str
    health_reason: str
    num_cores: int
    free: int
    alive: bool
    holders: tuple[Holder, ...]
    drained: Drained | None = None
    labels: tuple[str, ...] = ()
    sdk: str = ""

    @property
    def name(self) -> str:
        """For people, such as ``ultra/0``."""
        return f"{self.sku}/{self.qid}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostView:
    """A host and its slots."""

    id: int
    name: str
    num_cpus: int
    ram_bytes: int
    num_slots: int
    busy_slots: int
    alive: bool
    toolchain: dict[str, str]
    drained: Drained | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeView:
    """A Celery process, as it was last heard."""

    id: int
    host: str
    kind: str
    queue: str
    pid: int
    started_at: float
    heartbeat_at: float
    closing_at: float | None = None


def device_list(connection: sa.Connection, *, heard_since: float) -> list[DeviceView]:
    """All devices by host and qid.

    Args:
        connection: a read transaction.
        heard_since: nodes whose last heartbeat is older count as dead.
    """
    holders = _holders(connection)
    usable = (
        sa.select(sa.func.count())
        .where(cores.c.device_id == devices.c.id, cores.c.usable)
        .scalar_subquery()
        .label("usable")
    )
    alive = sa.exists().where(
        nodes.c.device_id == devices.c.id, nodes.c.stopped_at.is_(None), nodes.c.heartbeat_at >= heard_since
    )
    query = (
        sa.select(
            devices,
            hosts.c.name.label("host"),
            *(hosts.c[name].label(f"host_{name}") for name in (*_DRAINED, "labels", "toolchain")),
            usable,
            alive.label("alive"),
        )
        .join(hosts, hosts.c.id == devices.c.host_id)
        .order_by(hosts.c.name, devices.c.qid)
    )
    plain = ("id", "host", "qid", "sku", "simulated", "dram_mb", "health", "health_reason")
    return [
        DeviceView(
            **{name: row[name] for name in plain},
            num_cores=row["usable"],
            free=max(0, row["usable"] - sum(holder.num_cores for holder in holders[row["id"]])),
            alive=bool(row["alive"]),
            labels=tuple(sorted({*(row["labels"] or ()), *(row["host_labels"] or ())})),
            sdk=sdk_of(row["host_toolchain"]),
            holders=tuple(holders[row["id"]]),
            drained=_drained(row, host=True, prefix="host_") or _drained(row),
        )
        for row in connection.execute(query).mappings()
    ]


_DRAINED = ("drained", "drained_by", "drained_at")


def _drained(row: sa.RowMapping, *, host: bool = False, prefix: str = "") -> Drained | None:
    reason, by, at = (row[f"{prefix}{name}"] for name in _DRAINED)
    return Drained(by=by or "", at=at or 0.0, reason=reason, host=host) if reason is not None else None


def _holders(connection: sa.Connection) -> dict[int, list[Holder]]:
    query = (
        sa.select(
            core_leases.c.device_id,
            core_leases.c.job_id,
            core_leases.c.attempt,
            core_leases.c.state,
            jobs.c.label,
            jobs.c.submission_id,
            sa.func.count().label("num_cores"),
        )
        .join(jobs, jobs.c.id == core_leases.c.job_id)
        .group_by(
            core_leases.c.device_id,
            core_leases.c.job_id,
            core_leases.c.attempt,
            core_leases.c.state,
            jobs.c.label,
            jobs.c.submission_id,
        )
        .order_by(core_leases.c.device_id, core_leases.c.job_id)
    )
    found: dict[int, list[Holder]] = collections.defaultdict(list)
    for row in connection.execute(query):
        found[row.device_id].append(
            Holder(
                job_id=row.job_id,
                attempt=row.attempt,
                label=row.label,
                submission_id=row.submission_id,
                num_cores=row.num_cores,
                draining=row.state == "draining",
            )
        )
    return found


def known_devices(connection: sa.Connection) -> list[KnownDevice]:
    """What can be asked for: the devices that are there, if they only rest at the moment, by host and number."""
    query = (
        sa.select(
            hosts.c.name,
            hosts.c.labels.label("host_labels"),
            hosts.c.toolchain,
            devices.c.sku,
            devices.c.qid,
            devices.c.num_cores,
            devices.c.labels,
        )
        .join(hosts, hosts.c.id == devices.c.host_id)
        .where(sa.or_(devices.c.health.in_(["ready", "draining"]), devices.c.status == "Ready"))
        .order_by(hosts.c.name, devices.c.qid)
    )
    return [
        KnownDevice(
            name=f"{row.sku}/{row.qid}",
            host=row.name,
            sku=row.sku,
            num_cores=row.num_cores,
            labels=frozenset([*(row.labels or ()), *(row.host_labels or ())]),
            sdk=sdk_of(row.toolchain),
        )
        for row in connection.execute(query)
    ]


def host_names(connection: sa.Connection) -> list[str]:
    """The names of all hosts."""
    return list(connection.scalars(sa.select(hosts.c.name).order_by(hosts.c.name)))


def host_list(connection: sa.Connection, *, heard_since: float) -> list[HostView]:
    """All hosts by name; ``heard_since`` as in :func:`device_list`."""
    busy = sa.select(sa.func.count()).where(host_leases.c.host_id == hosts.c.id).scalar_subquery().label("busy_slots")
    alive = sa.exists().where(
        nodes.c.host_id == hosts.c.id,
        nodes.c.kind == "host",
        nodes.c.stopped_at.is_(None),
        nodes.c.heartbeat_at >= heard_since,
    )
    query = sa.select(hosts, busy, alive.label("alive")).order_by(hosts.c.name)
    names = [field.name for field in dataclasses.fields(HostView)]
    return [
        HostView(
            **{
                **{name: row[name] for name in names},
                "alive": bool(row["alive"]),
                "drained": _drained(row, host=True),
            }
        )
        for row in connection.execute(query).mappings()
    ]


def node_list(connection: sa.Connection) -> list[NodeView]:
    """Nodes that have not said that they stopped, by queue."""
    query = (
        sa.select(
            nodes.c.id,
            hosts.c.name.label("host"),
            nodes.c.kind,
            nodes.c.queue,
            nodes.c.pid,
            nodes.c.started_at,
            nodes.c.heartbeat_at,
            nodes.c.closing_at,
        )
        .join(hosts, hosts.c.id == nodes.c.host_id)
        .where(nodes.c.stopped_at.is_(None))
        .order_by(nodes.c.queue, nodes.c.id)
    )
    return [NodeView(**row) for row in connection.execute(query).mappings()]


def unfinished(connection: sa.Connection) -> dict[JobState, int]:
    """Jobs that have not ended, by state."""
    query = sa.select(jobs.c.state, sa.func.count()).where(jobs.c.finished_at.is_(None)).group_by(jobs.c.state)
    return {JobState(state): count for state, count in connection.execute(query)}


def paused(connection: sa.Connection) -> list[tuple[int, str, float]]:
    """Paused submissions with jobs that have not ended: number, who paused it, since when."""
    live = sa.exists().where(jobs.c.submission_id == submissions.c.id, jobs.c.finished_at.is_(None))
    query = (
        sa.select(submissions.c.id, submissions.c.paused_by, submissions.c.paused_at)
        .where(submissions.c.paused_at.is_not(None), live)
        .order_by(submissions.c.id)
    )
    return [(row.id, row.paused_by, row.paused_at) for row in connection.execute(query)]


def scheduler_works(connection: sa.Connection, *, now: float) -> bool:
    """Whether a scheduler holds the leader's lease."""
    return connection.execute(sa.select(leader.c.id).where(leader.c.lease_until > now)).first() is not None


def toolchain(connection: sa.Connection) -> dict[str, str]:
    """Versions by name of the host that registered last; empty when there is none."""
    query = sa.select(hosts.c.toolchain).order_by(hosts.c.registered_at.desc(), hosts.c.id.desc()).limit(1)
    return dict(connection.execute(query).scalar_one_or_none() or {})
