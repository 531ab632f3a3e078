"""A trace of what a farm has done: its machines, and every job that an attempt has succeeded for. Reads only."""

from __future__ import annotations

import collections
from typing import Any

import sqlalchemy as sa

from farm.lifecycle import leases
from farm.models import attempts, cores, devices, edges, hosts, jobs, literal, nodes
from farm.needs import sdk_of
from farm.records import Capacity, DeviceCapacity, HostCapacity
from farm.replay.traces import Task, Trace
from farm.scheduling import history

# A job that was done anew has succeeded twice, and its later result replaced the earlier.
_COUNTS = sa.and_(attempts.c.state == literal("succeeded"), attempts.c.replaced_at.is_(None))
_DONE = (
    sa.select(
        *(jobs.c[name] for name in ("id", "stage", "kind", "owner", "priority", "num_cores", "num_devices")),
        *(jobs.c[name] for name in ("exclusive", "needs", "model", "created_at")),
        attempts.c.started_at,
        attempts.c.finished_at.label("ended_at"),
        attempts.c.peak_rss_bytes,
        hosts.c.toolchain,
    )
    .join(attempts, sa.and_(attempts.c.job_id == jobs.c.id, _COUNTS))
    .join(nodes, nodes.c.id == attempts.c.node_id)
    .join(hosts, hosts.c.id == nodes.c.host_id)
    .order_by(jobs.c.created_at, jobs.c.id)
)
_DEVICES = (
    sa.select(devices, hosts.c.name.label("host"), hosts.c.toolchain, sa.func.count(cores.c.number).label("usable"))
    .join(hosts, hosts.c.id == devices.c.host_id)
    .join(cores, sa.and_(cores.c.device_id == devices.c.id, cores.c.usable))
    .where(devices.c.health != "lost")
    .group_by(devices.c.id, hosts.c.id)
    .order_by(devices.c.id)
)


def record(connection: sa.Connection, *, name: str) -> Trace:
    """The trace of everything that a farm's database still knows.

    Jobs that were cached or failed are not in it: they had no place, or not for as long as their work takes.
    """
    done = connection.execute(_DONE).all()
    work = history.kinds_of_work(connection, [row.id for row in done])
    known = set(work)
    parents: dict[int, list[int]] = collections.defaultdict(list)
    for link in connection.execute(sa.select(edges.c.child_id, edges.c.parent_id).order_by(edges.c.parent_id)):
        if link.child_id in known and link.parent_id in known:
            parents[link.child_id].append(link.parent_id)
    start = min((row.created_at for row in done), default=0.0)
    tasks = [_task(row, work[row.id], after=tuple(dict.fromkeys(parents[row.id])), start=start) for row in done]
    return Trace(name=name, capacity=_machines(connection), tasks=tuple(tasks))


def _task(row: Any, work: Any, *, after: tuple[int, ...], start: float) -> Task:
    return Task(
        id=row.id,
        at=round(row.created_at - start, 3),
        after=after,
        stage=row.stage,
        kind=row.kind,
        owner=row.owner,
        priority=row.priority,
        num_cores=row.num_cores,
        num_devices=max(1, row.num_devices),
        exclusive=row.exclusive,
        needs=row.needs,
        seconds=round(max(0.001, row.ended_at - row.started_at), 3),
        peak_rss_bytes=row.peak_rss_bytes or 0,
        model=row.model,
        keys=history.keys(work, sdk=sdk_of(row.toolchain)),
    )


def _machines(connection: sa.Connection) -> Capacity:
    """All hosts and all devices that are not lost, as if each were alive and empty."""
    found_hosts = []
    for row in connection.execute(sa.select(hosts).order_by(hosts.c.id)):
        budget = leases.ram_budget(row.ram_bytes)
        found_hosts.append(
            HostCapacity(
                node_id=2 * row.id,
                host_id=row.id,
                queue=f"host.{row.name}",
                host=row.name,
                labels=tuple(row.labels or ()),
                sdk=sdk_of(row.toolchain),
                num_slots=row.num_slots,
                free_slots=row.num_slots,
                ram_bytes=budget,
                free_ram_bytes=budget,
            )
        )
    labels = {host.host_id: host.labels for host in found_hosts}
    found_devices = [
        DeviceCapacity(
            node_id=2 * row.id + 1,  # one number never means a host and a device
            device_id=row.id,
            host_id=row.host_id,
            host=row.host,
            queue=f"device.{row.host}.{row.qid}",
            name=f"{row.sku}/{row.qid}",
            sku=row.sku,
            board=row.board_serial,
            labels=(*(row.labels or ()), *labels[row.host_id]),
            sdk=sdk_of(row.toolchain),
            simulated=row.simulated,
            num_cores=row.usable,
            free_cores=row.usable,
        )
        for row in connection.execute(_DEVICES)
    ]
    return Capacity(hosts=tuple(found_hosts), devices=tuple(found_devices))
