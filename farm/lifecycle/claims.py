"""How a node takes queued attempts, with the cores or slots that they need."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from farm.db import insert_all, now
from farm.errors import NoCapacity, StaleTransition
from farm.lifecycle import leadership, results
from farm.lifecycle.leases import CoresOfDevices, RoomOfHost
from farm.lifecycle.transitions import hold_graph, move, move_all, move_each
from farm.models import artifacts, attempts, edges, jobs, nodes
from farm.records import Claim, Claims, Grant
from farm.states import JobState

NO_LIMITS: Mapping[str, float] = MappingProxyType({})

_TOLD = ("id", "attempt", "submission_id", "stage", "label", "spec", "priority", "key_parts")
_WANTED = ("num_cores", "num_devices", "exclusive", "ram_bytes", "placed_on", "held", "run_limit_s", "deadline_at")
_QUEUED = (
    sa.select(*(jobs.c[name] for name in (*_TOLD, *_WANTED)))
    .where(jobs.c.id.in_(sa.bindparam("jobs", expanding=True)), jobs.c.state == str(JobState.QUEUED))
    .order_by(jobs.c.id)
    .with_for_update()
)
_NODE = sa.select(nodes.c.host_id, nodes.c.device_id, nodes.c.closing_at).where(nodes.c.id == sa.bindparam("node"))
_parents = jobs.alias()
_INPUTS = (
    sa.select(edges.c.child_id, edges.c.input, _parents.c.artifact, artifacts.c.used_at, artifacts.c.condemned_at)
    .select_from(edges)
    .join(_parents, _parents.c.id == edges.c.parent_id)
    .join(artifacts, artifacts.c.digest == _parents.c.artifact)
    .where(edges.c.child_id.in_(sa.bindparam("jobs", expanding=True)))
)


def claim(
    connection: sa.Connection,
    job_id: int,
    attempt: int,
    *,
    node_id: int,
    lease_s: float,
    run_limits_s: Mapping[str, float] = NO_LIMITS,
) -> Claim:
    """Take one queued attempt, as :func:`claim_all` takes many.

    Raises:
        StaleTransition: the message is late or a duplicate: there is nothing to do.
        NoCapacity: cores, slots or memory are taken; the caller rolls back and gives the job back.
    """
    claims = claim_all(connection, [(job_id, attempt)], node_id=node_id, lease_s=lease_s, run_limits_s=run_limits_s)
    for reason in claims.refused.values():
        raise NoCapacity(reason)
    if not claims.taken:
        raise StaleTransition(f"Job j{job_id} is no longer queued at attempt {attempt}: claim came too late.")
    return claims.taken[0]


def claim_all(
    connection: sa.Connection,
    keys: Sequence[tuple[int, int]],
    *,
    node_id: int,
    lease_s: float,
    run_limits_s: Mapping[str, float] = NO_LIMITS,
) -> Claims:
    """Take queued attempts (job, number) for a node, each with all the cores or the slot that it needs, or nothing.

    A key of a late or repeated message is left out. A job that there is no room for is given back, to be placed again.

    Args:
        connection: open transaction.
        keys: the attempts.
        node_id: who claims.
        lease_s: how long a claim holds without a heartbeat.
        run_limits_s: by stage, how long an attempt may run whose job says nothing; one that is absent has no limit.
    """
    hold_graph(connection, shared=True)
    wanted = _queued(connection, keys)
    if not wanted:
        return Claims(taken=(), refused={})
    at = now(connection)
    room = _Room(connection, node_id=node_id, wanted=wanted)
    places: dict[int, _Place] = {}
    refused: dict[int, str] = {}
    for job in wanted:
        try:
            places[job.id] = room.take(job, at=at)
        except NoCapacity as error:
            refused[job.id] = str(error)
            give_back(connection, job.id, job.attempt, reason=str(error))
    taken = [job for job in wanted if job.id in places]
    rows = [{"id": job.id, "attempt": job.attempt, "reason": "runs", "node_id": node_id} for job in taken]
    move_each(connection, rows, "claim", source=JobState.QUEUED, target=JobState.RUNNING, at=at)
    fixed = {"node_id": node_id, "state": "running", "lease_until": at + lease_s, "started_at": at}
    limits = {job.id: _Limits.of(job, run_limits_s=run_limits_s, at=at) for job in taken}
    insert_all(
        connection,
        attempts,
        [
            {
                "job_id": job.id,
                "number": job.attempt,
                **fixed,
                **places[job.id].to_row(),
                "run_until": limits[job.id].run_until(at),
            }
            for job in taken
        ],
    )
    room.write(connection)
    inputs = _inputs(connection, [job.id for job in taken], at=at)
    return Claims(
        taken=tuple(_told(job, place=places[job.id], inputs=inputs[job.id], limits=limits[job.id]) for job in taken),
        refused=refused,
    )


@dataclasses.dataclass(frozen=True)
class _Limits:
    """How long an attempt may run: by its own limit, and until the deadline of the whole; None for as long as it takes.

    They are kept apart, since what its node needs to start it counts for the deadline alone.
    """

    run_limit_s: float | None
    left_s: float | None

    @classmethod
    def of(cls, job: Any, *, run_limits_s: Mapping[str, float], at: float) -> _Limits:
        return cls(
            run_limit_s=job.run_limit_s or run_limits_s.get(job.stage),
            left_s=None if job.deadline_at is None else job.deadline_at - at,
        )

    def run_until(self, at: float) -> float | None:
        """When an attempt that begins now has to have ended."""
        return min((at + limit_s for limit_s in (self.run_limit_s, self.left_s) if limit_s is not None), default=None)


def _queued(connection: sa.Connection, keys: Sequence[tuple[int, int]]) -> list[Any]:
    """The jobs of keys that are still queued at that attempt, in the order of their ids; their rows are locked."""
    numbers = collections.defaultdict(set)
    for job_id, attempt in keys:
        numbers[job_id].add(attempt)
    found = connection.execute(_QUEUED, {"jobs": list(numbers)})
    return [row for row in found if row.attempt in numbers[row.id]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
    """What an attempt gets: cores or a slot, with some of the host's memory."""

    grants: tuple[Grant, ...] = ()
    ram_bytes: int = 0

    def to_row(self) -> dict[str, Any]:
        """What the attempt remembers of it when its leases are gone."""
        return {"placed_on": [dataclasses.asdict(grant) for grant in self.grants], "ram_bytes": self.ram_bytes}


class _Room:
    """What a node's host and devices have free, while claims take of it."""

    def __init__(self, connection: sa.Connection, *, node_id: int, wanted: Sequence[Any]) -> None:
        self._node = connection.execute(_NODE, {"node": node_id}).one()
        # The host's row before those of its devices: a registration takes them in this order, too.
        self._host: RoomOfHost | None = None
        if any(not job.num_cores or job.ram_bytes for job in wanted):
            self._host = RoomOfHost(connection, self._node.host_id)
        device_ids = {device_id for job in wanted if job.num_cores for device_id in self._devices(job)}
        self._cores: CoresOfDevices | None = None
        if device_ids:
            self._cores = CoresOfDevices(connection, device_ids, host_id=self._node.host_id)

    def _devices(self, job: Any) -> list[int]:
        return job.placed_on or [self._node.device_id]

    def take(self, job: Any, *, at: float) -> _Place:
        """What a job needs.

        Raises:
            NoCapacity: it is not there, or the node is no longer the one that was meant, or a user paused the job
                meanwhile.
        """
        if self._node.closing_at is not None:
            raise NoCapacity("The node shuts down.")
        if job.held:
            raise NoCapacity("Its submission is paused.")
        key = {"job_id": job.id, "attempt": job.attempt, "at": at}
        if self._host is not None and not job.num_cores:
            return _Place(ram_bytes=self._host.take(ram_bytes=job.ram_bytes, **key))
        device_ids = self._devices(job)
        if self._cores is None or self._node.device_id != device_ids[0] or len(device_ids) != job.num_devices:
            raise NoCapacity("The job was sent to devices that are not those of the node.")
        # Of a run of which nobody knows what it takes, nothing is reserved.
        ram_bytes = self._host.ram_for(job.ram_bytes) if self._host is not None else 0
        grants = self._cores.take(device_ids, num_cores=job.num_cores, exclusive=job.exclusive, **key)
        if self._host is not None:
            self._host.reserve(ram_bytes)
        return _Place(grants=grants, ram_bytes=ram_bytes)

    def write(self, connection: sa.Connection) -> None:
        """Write what was taken; the attempts are written already."""
        for taken in (self._cores, self._host):
            if taken is not None:
                taken.write(connection)


def _inputs(connection: sa.Connection, job_ids: Sequence[int], *, at: float) -> dict[int, dict[str, str]]:
    """Artifact digest by the name of the input, by job; that they are used is noted, but not each time."""
    found: dict[int, dict[str, str]] = collections.defaultdict(dict)
    noted = set()
    for row in connection.execute(_INPUTS, {"jobs": list(job_ids)}):
        found[row.child_id][row.input] = row.artifact
        if results.is_use_worth_noting(row.used_at, row.condemned_at, at=at):
            noted.add(row.artifact)
    results.use(connection, noted, at=at)
    return found


def _told(job: Any, *, place: _Place, inputs: dict[str, str], limits: _Limits) -> Claim:
    return Claim(
        job_id=job.id,
        attempt=job.attempt,
        submission_id=job.submission_id,
        stage=job.stage,
        label=job.label,
        spec=job.spec,
        priority=job.priority,
        inputs=inputs,
        grants=place.grants,
        ram_bytes=place.ram_bytes,
        ram_known=bool(job.ram_bytes),
        toolchain=(job.key_parts or {}).get("toolchain", {}),
        run_limit_s=limits.run_limit_s,
        left_s=limits.left_s,
    )


def give_back(connection: sa.Connection, job_id: int, attempt: int, *, reason: str, term: int | None = None) -> None:
    """A queued job goes back to be placed again.

    Raises:
        StaleTransition: the job is placed otherwise, or the term of the scheduler that asks is over.
    """
    leadership.require_term(connection, term)
    move(
        connection,
        job_id,
        "give_back",
        source=JobState.QUEUED,
        target=JobState.READY,
        reason=reason,
        at=now(connection),
        attempt=attempt,
        values={"node_id": None},
    )


def give_back_all(connection: sa.Connection, job_ids: Sequence[int], *, reason: str) -> None:
    """Queued jobs go back to be placed again; for a caller that holds the graph and their rows."""
    move_all(
        connection,
        job_ids,
        "give_back",
        source=JobState.QUEUED,
        target=JobState.READY,
        reason=reason,
        at=now(connection),
        values={"node_id": None, "placed_on": None},
    )
