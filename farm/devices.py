"""Hosts, devices and nodes: who is there, how healthy, and what is free on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from farm.db import now
from farm.models import core_leases, cores, devices, host_leases, hosts, jobs, literal, nodes
from farm.records import Capacity, DeviceCapacity, DeviceRecord, HostCapacity
from farm.states import JobState


def register_host(
    connection: sa.Connection,
    *,
    name: str,
    num_cpus: int,
    ram_bytes: int,
    num_slots: int,
    toolchain: Mapping[str, str],
) -> int:
    """Write what a host is; returns its id. A host that is known keeps its id."""
    values = {
        "num_cpus": num_cpus,
        "ram_bytes": ram_bytes,
        "num_slots": num_slots,
        "toolchain": dict(toolchain),
        "registered_at": now(connection),
    }
    known = sa.update(hosts).where(hosts.c.name == name).values(**values).returning(hosts.c.id)
    found = connection.execute(known).scalar_one_or_none()
    if found is not None:
        return int(found)
    try:
        with connection.begin_nested():
            return int(
                connection.execute(sa.insert(hosts).values(name=name, **values).returning(hosts.c.id)).scalar_one()
            )
    except sa.exc.IntegrityError:  # another node of the host was first
        return int(connection.execute(known).scalar_one())


def register_devices(connection: sa.Connection, *, host_id: int, found: Sequence[DeviceRecord]) -> list[int]:
    """Write the devices that a host has found; returns their ids in the same order.

    A device is known again by its board serial and PCI address, whatever its qid is now. One that is no longer there
    becomes ``lost``; one that comes back becomes ``ready``.
    """
    at = now(connection)
    ids = [_register_device(connection, host_id=host_id, device=device, at=at) for device in found]
    connection.execute(
        sa.update(devices)
        .where(devices.c.host_id == host_id, devices.c.id.not_in(ids))
        .values(health="lost", health_reason="its host does not find it any more", checked_at=at)
    )
    return ids


def _register_device(connection: sa.Connection, *, host_id: int, device: DeviceRecord, at: float) -> int:
    identity = (
        devices.c.host_id == host_id,
        devices.c.board_serial == device.board_serial,
        devices.c.pci_address == device.pci_address,
    )
    values = {
        "qid": device.qid,
        "sku": device.sku,
        "num_cores": device.num_cores,
        "dram_mb": device.dram_mb,
        "simulated": device.simulated,
        "checked_at": at,
    }
    known = connection.execute(
        sa.select(devices.c.id, devices.c.health).where(*identity).with_for_update()
    ).one_or_none()
    if known is not None:
        if known.health == "lost":
            values |= {"health": "ready", "health_reason": ""}
        connection.execute(sa.update(devices).where(devices.c.id == known.id).values(**values))
        device_id = int(known.id)
    else:
        device_id = int(
            connection.execute(
                sa.insert(devices)
                .values(host_id=host_id, board_serial=device.board_serial, pci_address=device.pci_address, **values)
                .returning(devices.c.id)
            ).scalar_one()
        )
    have = set(connection.scalars(sa.select(cores.c.number).where(cores.c.device_id == device_id)))
    missing = [{"device_id": device_id, "number": number} for number in range(device.num_cores) if number not in have]
    if missing:
        connection.execute(sa.insert(cores), missing)
    return device_id


def register_node(
    connection: sa.Connection, *, host_id: int, device_id: int | None, kind: str, queue: str, pid: int
) -> int:
    """Write a node that has just started; returns its id. Earlier nodes of its queue are stopped: it took over."""
    at = now(connection)
    connection.execute(
        sa.update(nodes).where(nodes.c.queue == queue, nodes.c.stopped_at.is_(None)).values(stopped_at=at)
    )
    return int(
        connection.execute(
            sa.insert(nodes)
            .values(
                host_id=host_id,
                device_id=device_id,
                kind=kind,
                queue=queue,
                pid=pid,
                started_at=at,
                heartbeat_at=at,
            )
            .returning(nodes.c.id)
        ).scalar_one()
    )


def node_heartbeat(connection: sa.Connection, node_id: int) -> None:
    """A node is alive."""
    connection.execute(sa.update(nodes).where(nodes.c.id == node_id).values(heartbeat_at=now(connection)))


def stop_node(connection: sa.Connection, node_id: int) -> None:
    """A node ends in an orderly way."""
    connection.execute(
        sa.update(nodes).where(nodes.c.id == node_id, nodes.c.stopped_at.is_(None)).values(stopped_at=now(connection))
    )


def set_health(connection: sa.Connection, device_id: int, *, health: str, reason: str) -> None:
    """Set a device's health; only a ``ready`` one gets new work."""
    connection.execute(
        sa.update(devices)
        .where(devices.c.id == device_id)
        .values(health=health, health_reason=reason, checked_at=now(connection))
    )


def live_nodes(connection: sa.Connection, *, max_age_s: float) -> list[int]:
    """Ids of the nodes that were heard lately and have not stopped."""
    return list(connection.scalars(sa.select(nodes.c.id).where(*_alive(connection, max_age_s)).order_by(nodes.c.id)))


def _alive(connection: sa.Connection, max_age_s: float) -> tuple[sa.ColumnElement[bool], ...]:
    return nodes.c.stopped_at.is_(None), nodes.c.heartbeat_at >= now(connection) - max_age_s


def toolchain(connection: sa.Connection, *, max_age_s: float) -> dict[str, str] | None:
    """Versions on the live host node that registered last; None when no host node is alive.

    Action keys are made with it. Hosts of one farm are expected to have the same versions.
    """
    found = connection.scalar(
        sa.select(hosts.c.toolchain)
        .join(nodes, nodes.c.host_id == hosts.c.id)
        .where(nodes.c.kind == "host", *_alive(connection, max_age_s))
        .order_by(hosts.c.registered_at.desc())
        .limit(1)
    )
    return dict(found) if found is not None else None


def capacity(connection: sa.Connection, *, max_age_s: float) -> Capacity:
    """What is free on live nodes that a user has not drained. What queued jobs will take counts as taken."""
    rows = connection.execute(
        sa.select(nodes, hosts.c.name.label("host"), hosts.c.num_slots)
        .join(hosts, hosts.c.id == nodes.c.host_id)
        .where(*_alive(connection, max_age_s), hosts.c.drained.is_(None))
        .order_by(nodes.c.id)
    ).all()
    expected = _expected(connection)
    device_cores = _device_cores(connection)
    slots_held: dict[int, int] = _counts(connection, host_leases.c.host_id)
    found_hosts, found_devices = [], []
    for row in rows:
        num_jobs, num_cores = expected.get(row.queue, (0, 0))
        if row.kind == "host":
            free = row.num_slots - slots_held.get(row.host_id, 0) - num_jobs
            found_hosts.append(
                HostCapacity(
                    node_id=row.id,
                    host_id=row.host_id,
                    queue=row.queue,
                    host=row.host,
                    num_slots=row.num_slots,
                    free_slots=max(0, free),
                )
            )
        elif row.device_id in device_cores:
            name, usable, held = device_cores[row.device_id]
            found_devices.append(
                DeviceCapacity(
                    node_id=row.id,
                    device_id=row.device_id,
                    queue=row.queue,
                    name=name,
                    num_cores=usable,
                    free_cores=max(0, usable - held - num_cores),
                )
            )
    return Capacity(hosts=tuple(found_hosts), devices=tuple(found_devices))


def _counts(connection: sa.Connection, column: sa.Column[int]) -> dict[int, int]:
    rows = connection.execute(sa.select(column, sa.func.count()).group_by(column))
    return {row[0]: row[1] for row in rows}


def _expected(connection: sa.Connection) -> dict[str, tuple[int, int]]:
    """By queue: how many queued jobs, and how many cores they want together."""
    rows = connection.execute(
        sa.select(nodes.c.queue, sa.func.count().label("jobs"), sa.func.sum(jobs.c.num_cores).label("cores"))
        .join(nodes, nodes.c.id == jobs.c.node_id)
        .where(jobs.c.state == literal(JobState.QUEUED))
        .group_by(nodes.c.queue)
    )
    return {row.queue: (row.jobs, int(row.cores)) for row in rows}


def _device_cores(connection: sa.Connection) -> dict[int, tuple[str, int, int]]:
    """By healthy device that is not drained: its name, usable cores, and how many of them are held or draining."""
    counted = connection.execute(
        sa.select(cores.c.device_id, sa.func.count()).where(cores.c.usable).group_by(cores.c.device_id)
    )
    usable: dict[int, int] = {row[0]: row[1] for row in counted}
    held = _counts(connection, core_leases.c.device_id)
    rows = connection.execute(
        sa.select(devices.c.id, devices.c.sku, devices.c.qid).where(
            devices.c.health == "ready", devices.c.drained.is_(None)
        )
    )
    return {row.id: (f"{row.sku}/{row.qid}", usable.get(row.id, 0), held.get(row.id, 0)) for row in rows}
