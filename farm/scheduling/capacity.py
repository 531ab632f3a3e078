"""What is free where, who holds the rest, and until when: all that placement knows of the machines. Reads only."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from farm.db import now
from farm.lifecycle import leases
from farm.models import attempts, core_leases, cores, devices, host_leases, hosts, jobs, literal, nodes
from farm.needs import sdk_of
from farm.placement import estimates
from farm.records import Capacity, DeviceCapacity, Holding, HostCapacity
from farm.states import JobState

_WANTED = ("num_cores", "num_devices", "exclusive", "ram_bytes", "reserved_s", "stage", "owner")
_RUNNING = (
    sa.select(
        attempts.c.job_id,
        attempts.c.number,
        attempts.c.started_at,
        *(jobs.c[name] for name in _WANTED),
    )
    .join(jobs, jobs.c.id == attempts.c.job_id)
    .where(attempts.c.state == literal("running"))
)
_QUEUED = (
    sa.select(jobs.c.id, jobs.c.placed_on, nodes.c.host_id, nodes.c.device_id, *(jobs.c[name] for name in _WANTED))
    .join(nodes, nodes.c.id == jobs.c.node_id)
    .where(jobs.c.state == literal(JobState.QUEUED))
)
_HELD_CORES = sa.select(
    core_leases.c.device_id, core_leases.c.job_id, core_leases.c.attempt, sa.func.count().label("cores")
).group_by(core_leases.c.device_id, core_leases.c.job_id, core_leases.c.attempt)
_HELD_SLOTS = sa.select(host_leases.c.host_id, host_leases.c.job_id, host_leases.c.attempt, host_leases.c.ram_bytes)
_USABLE = sa.select(cores.c.device_id, sa.func.count().label("cores")).where(cores.c.usable).group_by(cores.c.device_id)
_HEALTHY = sa.select(devices).where(devices.c.health == "ready", devices.c.drained.is_(None))


def capacity(connection: sa.Connection, *, max_age_s: float) -> Capacity:
    """What is free on live nodes that do not shut down, in healthy places that are not drained.

    What queued jobs will take counts as taken.

    Args:
        connection: a read transaction.
        max_age_s: nodes that were not heard for longer count as dead.
    """
    at = now(connection)
    alive = connection.execute(
        sa.select(
            nodes.c.id,
            nodes.c.kind,
            nodes.c.queue,
            nodes.c.host_id,
            nodes.c.device_id,
            hosts.c.name,
            hosts.c.num_slots,
            hosts.c.ram_bytes,
            hosts.c.labels,
            hosts.c.toolchain,
        )
        .join(hosts, hosts.c.id == nodes.c.host_id)
        .where(
            nodes.c.stopped_at.is_(None),
            nodes.c.heartbeat_at >= at - max_age_s,
            hosts.c.drained.is_(None),
            nodes.c.closing_at.is_(None),
        )
        .order_by(nodes.c.id)
    ).all()
    usable = {row.device_id: row.cores for row in connection.execute(_USABLE)}
    taken = _taken(connection, usable=usable, at=at)
    healthy = {row.id: row for row in connection.execute(_HEALTHY)}
    of_hosts = {row.host_id: row for row in alive if row.kind == "host"}
    silent = {row.host_id: row for row in alive if row.host_id not in of_hosts}
    return Capacity(
        hosts=tuple(
            _host(row, taken.of_host[row.host_id], queued_s=taken.queued_s[row.host_id])
            for row in alive
            if row.kind == "host"
        ),
        devices=tuple(
            _device(
                row, healthy[row.device_id], usable=usable.get(row.device_id, 0), held=taken.of_device[row.device_id]
            )
            for row in alive
            if row.kind == "device" and row.device_id in healthy
        ),
        silent_hosts=tuple(_host(row, taken.of_host[host_id], queued_s=0.0) for host_id, row in silent.items()),
    )


def use_of_running(connection: sa.Connection, *, at: float) -> dict[str, float]:
    """Core-seconds and slot-seconds by owner of what runs: what is charged to nobody before it has ended."""
    used: dict[str, float] = collections.defaultdict(float)
    for row in connection.execute(_RUNNING):
        used[row.owner] += max(1, row.num_cores * row.num_devices) * max(0.0, at - row.started_at)
    return used


@dataclasses.dataclass(frozen=True)
class _Taken:
    """Holdings by device and by host, and what is queued for hosts."""

    of_device: Mapping[int, list[Holding]]
    of_host: Mapping[int, list[Holding]]
    queued_s: Mapping[int, float]  # by host, of all its slots together


def _taken(connection: sa.Connection, *, usable: Mapping[int, int], at: float) -> _Taken:
    of_device: dict[int, list[Holding]] = collections.defaultdict(list)
    of_host: dict[int, list[Holding]] = collections.defaultdict(list)
    queued_s: dict[int, float] = collections.defaultdict(float)
    running = {(row.job_id, row.number): row for row in connection.execute(_RUNNING)}
    for row in connection.execute(_HELD_CORES):
        holder = running.get((row.job_id, row.attempt))  # None: lost, and its cores drain
        of_device[row.device_id].append(
            Holding(
                job_id=row.job_id,
                amount=row.cores,
                ends_at=_ends_at(holder, at=at) if holder is not None else None,
                exclusive=holder is not None and holder.exclusive,
            )
        )
    for row in connection.execute(_HELD_SLOTS):
        holder = running.get((row.job_id, row.attempt))
        ends_at = _ends_at(holder, at=at) if holder is not None else None
        of_host[row.host_id].append(Holding(job_id=row.job_id, amount=1, ram_bytes=row.ram_bytes, ends_at=ends_at))
    for row in connection.execute(leases.RAM_OF_RUNS):
        holder = running.get((row.job_id, row.attempt))
        ends_at = _ends_at(holder, at=at) if holder is not None else None
        of_host[row.host_id].append(Holding(job_id=row.job_id, amount=0, ram_bytes=row.ram_bytes, ends_at=ends_at))
    for row in connection.execute(_QUEUED):
        common = {"job_id": row.id, "ends_at": at + _reserved_s(row), "exclusive": row.exclusive}
        if not row.num_cores:
            of_host[row.host_id].append(Holding(amount=1, ram_bytes=row.ram_bytes, **common))
            queued_s[row.host_id] += _reserved_s(row)
        elif row.ram_bytes:
            of_host[row.host_id].append(Holding(amount=0, ram_bytes=row.ram_bytes, **common))
        for device_id in (row.placed_on or [row.device_id]) if row.num_cores else ():
            amount = usable.get(device_id, 0) if row.exclusive else row.num_cores
            of_device[device_id].append(Holding(amount=amount, **common))
    return _Taken(of_device, of_host, queued_s)


def _reserved_s(row: Any) -> float:
    return float(row.reserved_s) if row.reserved_s is not None else estimates.estimate({}, (row.stage,)).reserved_s


def _ends_at(row: Any, *, at: float) -> float:
    return estimates.ends_at(started_at=row.started_at, reserved_s=_reserved_s(row), now=at)


def _host(node: Any, held: Sequence[Holding], *, queued_s: float) -> HostCapacity:
    budget = leases.ram_budget(node.ram_bytes)
    share = leases.ram_of_slot(ram_bytes=node.ram_bytes, num_slots=node.num_slots)
    reserved = sum(holding.ram_bytes or share * holding.amount for holding in held)
    return HostCapacity(
        node_id=node.id,
        host_id=node.host_id,
        queue=node.queue,
        host=node.name,
        labels=tuple(node.labels or ()),
        sdk=sdk_of(node.toolchain),
        num_slots=node.num_slots,
        free_slots=max(0, node.num_slots - sum(holding.amount for holding in held)),
        queued_s=queued_s / max(1, node.num_slots),
        ram_bytes=budget,
        free_ram_bytes=max(0, budget - reserved),
        holdings=tuple(held),
    )


def _device(node: Any, device: Any, *, usable: int, held: Sequence[Holding]) -> DeviceCapacity:
    return DeviceCapacity(
        node_id=node.id,
        device_id=node.device_id,
        host_id=node.host_id,
        host=node.name,
        queue=node.queue,
        name=f"{device.sku}/{device.qid}",
        sku=device.sku,
        board=device.board_serial,
        labels=(*(device.labels or ()), *(node.labels or ())),
        sdk=sdk_of(node.toolchain),
        simulated=device.simulated,
        num_cores=usable,
        free_cores=max(0, usable - sum(holding.amount for holding in held)),
        holdings=tuple(held),
        warm=frozenset(device.models or ()),
    )
